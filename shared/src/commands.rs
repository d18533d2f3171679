//! What both programs can do besides their work.

mod livez;

pub use livez::livez;
