//! What developers run, and the private servers that it and the tests run on.
//!
//! - [`postgres`] and [`kafka`]: private servers; the tests of the other crates start their own ones with these.
//! - [`stack`]: both servers together, with the environment that makes ours use them.
//! - [`demo`], [`testing`], [`faults`], [`check`], [`mod@bench`], [`tools`]: the commands of `cargo xtask`.
//! - [`packages`]: installs what a bare machine lacks.
//! - [`process`], [`interrupt`], [`ports`]: child processes that never outlive us.
//! - [`progress`], [`project`]: what is printed, and where things are.
//!
//! Nothing of the services is used here: this must build in seconds on a machine that has only cargo, because it is what
//! installs everything else.

pub mod bench;
mod cargo;
pub mod check;
pub mod demo;
pub mod faults;
pub mod fuzz;
mod http;
pub mod interrupt;
pub mod kafka;
pub mod packages;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod progress;
pub mod project;
pub mod stack;
mod temporary;
pub mod testing;
pub mod tools;

/// A number for some bytes, the same in every run and version (FNV-1a), which std's hasher does not promise.
pub(crate) fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
