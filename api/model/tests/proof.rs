//! The cache's core keeps its promise under every schedule that is tried, and the model finds each classic mistake.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cache_model::directed;
use cache_model::sync::{Mistake, plant};
use cache_model::world::{self, Scene};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

/// The number of random schedules that the core has to pass in each scene.
const SCHEDULES: usize = 100_000;
/// Overrides [`SCHEDULES`].
const SCHEDULES_VARIABLE: &str = "CACHE_MODEL_SCHEDULES";
/// Chooses other schedules. Without it they are the same in each run.
const SEED_VARIABLE: &str = "CACHE_MODEL_SEED";
/// The number of schedules within which each mistake has to be found. Most take hundreds, the rarest some ten thousand.
const SCHEDULES_PER_MISTAKE: usize = 1_000_000;
/// In half of the schedules a thread runs until it waits for another one, and threads are delayed for long at so many
/// moments (Burckhardt, Kothari, Musuvathi and Nagarakatte, "A Randomized Scheduler with Probabilistic Guarantees of Finding
/// Bugs", 2010). In the other half each step is drawn.
const DELAYS: usize = 3;
/// The number of schedules that are tried with one seed. The seeds are the same in each run, so that it takes the same time.
const ROUND: usize = 1000;

/// Runs this many schedules of both kinds.
fn run(world: impl Fn() + Send + Sync + Clone + 'static, seed: u64, schedules: usize) {
    let random = RandomScheduler::new_from_seed(seed, schedules / 2);
    Runner::new(random, Config::default()).run(world.clone());
    let delaying = PctScheduler::new_from_seed(seed, DELAYS, schedules / 2);
    Runner::new(delaying, Config::default()).run(world);
}

fn passes(scene: Scene) {
    let schedules = std::env::var(SCHEDULES_VARIABLE)
        .map_or(SCHEDULES, |number| number.parse().expect("a number"));
    let seed = std::env::var(SEED_VARIABLE).map_or(1, |number| number.parse().expect("a number"));
    run(move || world::run(scene), seed, schedules);
}

#[test]
fn no_schedule_breaks_the_promise_while_the_database_stays_the_same() {
    passes(Scene::Calm);
}

#[test]
fn no_schedule_breaks_the_promise_through_restores_and_hidden_changes() {
    passes(Scene::OneServer);
}

#[test]
fn no_schedule_breaks_the_promise_through_a_failover() {
    passes(Scene::TwoServers);
}

#[test]
fn stories_end_well() {
    for story in [
        directed::verification_by_another_server,
        directed::audit_of_an_absence_that_came_later,
        directed::echo_before_the_history,
    ] {
        tell(story);
    }
}

fn tell(story: fn()) {
    shuttle::check_random(story, 1);
}

/// Fails unless the world fails with this mistake. Prints how many schedules that took.
fn finds(mistake: Mistake, scene: Scene) {
    plant(mistake);
    let tried = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tried);
    let counted_run = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        world::run(scene);
    };
    let ended = catch_unwind(AssertUnwindSafe(|| {
        // Both kinds take turns, because a mistake may be rare in one of them.
        for seed in 0..(SCHEDULES_PER_MISTAKE / ROUND) as u64 {
            run(counted_run.clone(), seed, ROUND);
        }
    }));
    let tried = tried.load(Ordering::Relaxed);
    assert!(
        ended.is_err(),
        "{mistake:?} was not found in {tried} schedules"
    );
    println!("{mistake:?} was found in schedule {tried}");
}

macro_rules! finds {
    ($($test:ident: $mistake:ident in $scene:ident,)*) => { $(
        #[test]
        fn $test() {
            finds(Mistake::$mistake, Scene::$scene);
        }
    )* };
}

finds! {
    store_without_slot: StoreWithoutSlot in Calm,
    join_after_event: JoinAfterEvent in Calm,
    load_without_epoch: LoadWithoutEpoch in Calm,
    load_from_before_listen: LoadFromBeforeListen in Calm,
    hit_without_epoch: HitWithoutEpoch in Calm,
    absence_survives_a_loss: AbsenceSurvivesALoss in Calm,
    verify_any_version: VerifyAnyVersion in Calm,
    demand_joins_older_load: DemandJoinsOlderLoad in Calm,
    older_entry_after_a_blind_read: OlderEntryAfterABlindRead in Calm,
    older_entry_after_a_discarded_load: OlderEntryAfterADiscardedLoad in Calm,
    next_load_forgotten: NextLoadForgotten in Calm,
    loss_keeps_the_epoch: LossKeepsTheEpoch in Calm,
    absence_left_behind_by_a_store: AbsenceLeftBehindByAStore in Calm,
    other_versions_by_their_size: OtherVersionsByTheirSize in Calm,
    audit_of_an_unverified_entry: AuditOfAnUnverifiedEntry in Calm,
    audit_in_one_look: AuditInOneLook in Calm,
    proof_without_the_echo: ProofWithoutTheEcho in Calm,
    proof_during_a_delayed_flush: ProofDuringADelayedFlush in Calm,
    audit_of_versions_only: AuditOfVersionsOnly in OneServer,
    audit_without_absences: AuditWithoutAbsences in OneServer,
    entries_survive_a_new_history: EntriesSurviveANewHistory in TwoServers,
    store_of_any_history: StoreOfAnyHistory in TwoServers,
}

macro_rules! finds_in_a_story {
    ($($test:ident: $mistake:ident in $story:ident,)*) => { $(
        #[test]
        #[should_panic]
        fn $test() {
            plant(Mistake::$mistake);
            tell(directed::$story);
        }
    )* };
}

finds_in_a_story! {
    verify_in_any_history: VerifyInAnyHistory in verification_by_another_server,
    audit_of_a_later_absence: AuditOfALaterAbsence in audit_of_an_absence_that_came_later,
    proof_without_the_history: ProofWithoutTheHistory in echo_before_the_history,
}
