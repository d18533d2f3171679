//! Short stories that end in a broken promise if a rare mistake is planted. In the large world, the same coincidence takes
//! more schedules than a run of the tests can try.

use std::num::NonZeroUsize;

use crate::cache::core::{Capacity, Core, Demand, Loaded, Lookup, Placement, Versioned};
use crate::cache::proof::Heartbeats;

const HISTORY: u64 = 1;
const OTHER_HISTORY: u64 = 2;
const UID: &str = "a";

#[derive(Clone, Debug, PartialEq)]
struct Content(i64);

impl Versioned for Content {
    fn version(&self) -> i64 {
        self.0
    }
}

type StoryCore = Core<Content, (), ()>;

fn open_core() -> StoryCore {
    let core = StoryCore::new(Capacity::of_entries(NonZeroUsize::MIN));
    open(&core);
    core
}

fn open(core: &StoryCore) {
    core.open_fills(HISTORY);
    core.set_serving(true);
}

fn load(core: &StoryCore, loaded: Loaded<Content>) {
    let looked_up = core.look_up(UID, Demand::Proven, true, || ((), ()));
    let Lookup::Load(ticket, ()) = looked_up else {
        panic!("something was cached: {looked_up:?}");
    };
    core.complete(ticket, loaded, HISTORY, Placement::Hot);
}

/// The listener is lost and comes back to the same server, on which the order has changed meanwhile. The pool has reached the
/// other server, which still has the former version.
///
/// # Panics
/// Panics if the former content is served.
pub fn verification_by_another_server() {
    let core = open_core();
    load(&core, Loaded::Found(Content(5), 1));
    core.close();
    open(&core);
    core.verify(UID, core.epoch(), OTHER_HISTORY, Some(5));
    let looked_up = core.look_up(UID, Demand::Proven, true, || ((), ()));
    assert!(
        !matches!(looked_up, Lookup::Hit(_)),
        "former content is served"
    );
}

/// The auditor has seen that an absence is wrong. Then the event of the insert drops it, the order is deleted, and a new load
/// finds it absent.
///
/// # Panics
/// Panics if the new absence counts as wrong.
pub fn audit_of_an_absence_that_came_later() {
    let core = open_core();
    load(&core, Loaded::NotFound);
    let sample = core.sample_absences(1, 0);
    let [sampled] = sample.as_slice() else {
        panic!("one absence is known: {sample:?}");
    };
    core.invalidate(UID);
    load(&core, Loaded::NotFound);
    assert!(!core.evict_wrong(sampled), "a false alarm");
}

/// The echo of a heartbeat arrives before what the heartbeat has read.
///
/// # Panics
/// Panics if the echo alone proves something.
pub fn echo_before_the_history() {
    let mut heartbeats = Heartbeats::default();
    heartbeats.echo(5);
    assert_eq!(heartbeats.proven_ms(false), None, "nothing was compared");
    heartbeats.compare(3);
    assert_eq!(heartbeats.proven_ms(false), Some(3));
}
