//! The cache's core keeps its promise under every schedule that is tried, and the model finds each classic mistake.

use cache_model::sync::{Mistake, plant};
use cache_model::world;
use shuttle::scheduler::RandomScheduler;
use shuttle::{Config, Runner};

/// The number of random schedules that the core has to pass.
const SCHEDULES: usize = 100_000;
/// Overrides [`SCHEDULES`].
const SCHEDULES_VARIABLE: &str = "CACHE_MODEL_SCHEDULES";
/// The number of schedules within which each mistake has to be found. Most take hundreds, the rarest some ten thousand.
const SCHEDULES_PER_MISTAKE: usize = 1_000_000;
/// Makes these schedules the same in each run, so that a run takes the same time.
const SEED: u64 = 1;

#[test]
fn no_schedule_breaks_the_promise() {
    let schedules =
        std::env::var(SCHEDULES_VARIABLE).map_or(SCHEDULES, |number| number.parse().unwrap());
    shuttle::check_random(world::run, schedules);
}

macro_rules! finds {
    ($($test:ident: $mistake:ident,)*) => { $(
        #[test]
        #[should_panic]
        fn $test() {
            plant(Mistake::$mistake);
            let scheduler = RandomScheduler::new_from_seed(SEED, SCHEDULES_PER_MISTAKE);
            Runner::new(scheduler, Config::default()).run(world::run);
        }
    )* };
}

finds! {
    store_without_slot: StoreWithoutSlot,
    join_after_event: JoinAfterEvent,
    load_without_epoch: LoadWithoutEpoch,
    load_from_before_listen: LoadFromBeforeListen,
    hit_without_epoch: HitWithoutEpoch,
    absence_survives_a_loss: AbsenceSurvivesALoss,
    verify_any_version: VerifyAnyVersion,
    demand_joins_older_load: DemandJoinsOlderLoad,
    older_entry_after_a_blind_read: OlderEntryAfterABlindRead,
    older_entry_after_a_discarded_load: OlderEntryAfterADiscardedLoad,
    next_load_forgotten: NextLoadForgotten,
    loss_keeps_the_epoch: LossKeepsTheEpoch,
    absence_left_behind_by_a_store: AbsenceLeftBehindByAStore,
}
