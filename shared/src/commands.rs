//! What both programs can do besides their work.

mod completions;
mod livez;

pub use completions::{Shell, completions};
pub use livez::livez;
