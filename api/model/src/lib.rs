//! The cache's core (`api/src/cache/core.rs`) under a model checker.
//!
//! `build.rs` compiles the core's own source against shuttle, which runs the threads of `model.rs` through many schedules.
//! The core as it is must pass all of them. With a classic mistake planted it must fail.

#![cfg(test)]

use shuttle::scheduler::RandomScheduler;
use shuttle::{Config, Runner};

/// Random schedules that the core has to pass.
const SCHEDULES: usize = 100_000;
/// Overrides [`SCHEDULES`].
const SCHEDULES_VARIABLE: &str = "CACHE_MODEL_SCHEDULES";
/// Schedules within which each mistake has to be found. Most take hundreds, the rarest some ten thousand.
const SCHEDULES_PER_MISTAKE: usize = 1_000_000;
/// Where those begin.
const SEED: u64 = 1;

macro_rules! model {
    ($variant:ident) => {
        #[expect(dead_code, reason = "the model needs less of the core than the api")]
        mod $variant {
            include!(concat!(env!("OUT_DIR"), "/", stringify!($variant), ".rs"));
            mod model {
                include!("model.rs");
            }
            pub use model::run;
        }
    };
}

macro_rules! mistakes {
    ($($mistake:ident)*) => { $(
        model!($mistake);

        #[test]
        #[should_panic]
        fn $mistake() {
            // The same schedules each time, so that the time it takes is the same.
            let scheduler = RandomScheduler::new_from_seed(SEED, SCHEDULES_PER_MISTAKE);
            Runner::new(scheduler, Config::default()).run($mistake::run);
        }
    )* };
}

model!(sound);

#[test]
fn no_schedule_breaks_the_promise() {
    let schedules =
        std::env::var(SCHEDULES_VARIABLE).map_or(SCHEDULES, |number| number.parse().unwrap());
    shuttle::check_random(sound::run, schedules);
}

mistakes! {
    store_without_slot
    join_after_event
    load_without_epoch
    load_from_before_listen
    hit_without_epoch
    absence_survives_a_loss
    verify_any_version
    demand_joins_older_load
    older_entry_after_a_blind_read
    older_entry_after_a_discarded_load
    next_load_forgotten
    loss_keeps_the_epoch
    absence_left_behind_by_a_store
}
