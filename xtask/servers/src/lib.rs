//! Private PostgreSQL and Kafka servers and proxies, and child processes that never outlive their parent.
//!
//! `cargo xtask`, the benchmarks and the tests of the other crates start their servers with this crate. It uses nothing of
//! the services, so that `cargo xtask` builds in seconds.
//!
//! | module | what it is for | uses |
//! |---|---|---|
//! | [`project`] | where the workspace and its files are | |
//! | [`progress`] | what the developer sees: one line for each step | |
//! | [`ports`] | free ports on loopback | |
//! | [`proc`] | what the kernel tells about processes | |
//! | [`signals`] | signals to processes, groups and whole trees | [`proc`] |
//! | [`interrupt`] | Ctrl-C, and waiting that Ctrl-C ends | [`progress`], [`signals`] |
//! | [`process`] | child processes: starting, watching, stopping them | [`signals`], [`interrupt`] |
//! | [`temporary`] | temporary folders that do not outlive their owner for long | [`proc`] |
//! | [`kafka`] | a private Apache Kafka | [`project`], [`progress`], [`ports`], [`proc`], [`signals`], [`interrupt`], [`process`], [`temporary`] |
//! | [`postgres`] | a private PostgreSQL, its standby, and a pooler in front of it | [`project`], [`progress`], [`ports`], [`signals`], [`interrupt`], [`process`], [`temporary`] |
//! | [`prometheus`] | a private Prometheus, which scrapes and judges what it is told to | [`ports`], [`interrupt`], [`process`], [`temporary`] |
//! | [`proxy`] | a private Apache httpd or nginx in front of another server | [`ports`], [`interrupt`], [`process`], [`temporary`] |

pub mod interrupt;
pub mod kafka;
pub mod ports;
pub mod postgres;
pub mod proc;
pub mod process;
pub mod progress;
pub mod project;
pub mod prometheus;
pub mod proxy;
pub mod signals;
pub mod temporary;
