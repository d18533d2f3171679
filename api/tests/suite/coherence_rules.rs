//! The checker of the fault tests: it accepts a sound history, and finds each kind of broken promise in a forged one.

use std::slice;
use std::time::Duration;

use crate::support::coherence::{
    Committed, Divided, Failover, History, Observation, Seen, Violation, Write,
};

const BOUND: Duration = Duration::from_secs(5);

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn write(sequence: Option<i64>, version: i64, second: u64) -> Write {
    Write {
        order: 0,
        sequence,
        sent: at(second),
        committed: Some(Committed {
            version,
            acknowledged: at(second + 1),
        }),
    }
}

fn seen(version: i64, sequence: i64) -> Option<Seen> {
    Some(Seen {
        version,
        sequence,
        item_sequence: sequence,
    })
}

/// An answer of process 0 that took one second.
fn observation(second: u64, seen: Option<Seen>) -> Observation {
    Observation {
        process: 0,
        order: 0,
        started: at(second),
        ended: at(second + 1),
        seen,
        is_hit: true,
    }
}

/// The order is written at 0 and at 10, deleted at 20, written at 30 without an answer, and written at 40.
fn sound() -> History {
    let mut unknown = write(Some(3), 0, 30);
    unknown.committed = None;
    History {
        writes: vec![
            write(Some(1), 100, 0),
            write(Some(2), 101, 10),
            write(None, 102, 20),
            unknown,
            write(Some(4), 105, 40),
        ],
        observations: vec![
            observation(2, seen(100, 1)),
            // Old, but within the bound.
            observation(15, seen(100, 1)),
            observation(17, seen(101, 2)),
            observation(26, None),
            // The write without an answer is first missing and then seen.
            observation(31, None),
            observation(33, seen(103, 3)),
            observation(42, seen(103, 3)),
            observation(47, seen(105, 4)),
        ],
    }
}

fn violations(history: &History) -> Vec<Violation> {
    history.judge(BOUND).violations
}

#[test]
fn a_sound_history_passes_and_its_oldest_answer_is_measured() {
    let judgement = sound().judge(BOUND);
    assert_eq!(judgement.violations, []);
    assert_eq!(judgement.oldest, at(4));
}

#[test]
fn an_answer_older_than_the_bound_is_found() {
    let mut history = sound();
    let stale = observation(17, seen(100, 1));
    history.observations[2] = stale.clone();
    let expected = Violation::Stale {
        observation: stale,
        age: at(6),
    };
    assert_eq!(violations(&history), [expected]);

    // This also holds if the answer lacks a deletion, or everything after it.
    history.observations[2] = observation(27, seen(101, 2));
    assert!(matches!(
        violations(&history)[..],
        [Violation::Stale { age, .. }, ..] if age == at(6)
    ));
    history.observations[2] = observation(47, seen(100, 1));
    assert!(matches!(
        violations(&history)[..],
        [Violation::Stale { age, .. }, ..] if age == at(36)
    ));
}

#[test]
fn an_order_that_is_still_missing_long_after_it_was_written_is_found() {
    let mut history = sound();
    history.observations[7] = observation(47, None);
    let found = violations(&history);
    assert!(matches!(found[0], Violation::Stale { age, .. } if age == at(6)));
    // In addition, the process had shown it before.
    assert!(matches!(found[1], Violation::WentBack { .. }));
}

#[test]
fn an_answer_that_goes_back_on_one_process_is_found() {
    let mut history = sound();
    let earlier = observation(11, seen(101, 2));
    let later = observation(13, seen(100, 1));
    history
        .observations
        .extend([earlier.clone(), later.clone()]);
    let violation = Violation::WentBack {
        earlier: earlier.clone(),
        later: later.clone(),
    };
    assert!(violations(&history).contains(&violation));

    // Another process may be behind. Of two answers at the same time, either may be the older one.
    let mut history = sound();
    history.observations.push(Observation {
        process: 1,
        ..earlier.clone()
    });
    history.observations.push(later.clone());
    assert_eq!(violations(&history), []);
    let at_once = Observation {
        started: earlier.ended,
        ..later
    };
    let mut history = sound();
    history.observations = vec![earlier, at_once];
    assert_eq!(violations(&history), []);
}

#[test]
fn a_missing_order_may_be_missing_because_of_the_deletion_before() {
    let mut slow_deletion = write(None, 103, 21);
    slow_deletion.committed = Some(Committed {
        version: 103,
        acknowledged: at(30),
    });
    let writes = vec![
        write(Some(1), 100, 0),
        write(None, 101, 10),
        write(Some(2), 102, 20),
        slow_deletion,
    ];
    let mut history = History {
        writes,
        observations: vec![observation(20, None), observation(23, seen(102, 2))],
    };
    assert_eq!(violations(&history), []);
    // Now it can only be missing because of the slow deletion, after which nothing older may follow.
    let missing = observation(25, None);
    let back = observation(27, seen(102, 2));
    history.observations.extend([missing.clone(), back.clone()]);
    let expected = Violation::WentBack {
        earlier: missing,
        later: back,
    };
    assert_eq!(violations(&history), [expected]);
}

#[test]
fn an_answer_that_nobody_wrote_is_found() {
    for forged in [
        // Never sent.
        observation(47, seen(106, 9)),
        // Not yet sent.
        observation(35, seen(105, 4)),
        // Not yet deleted.
        observation(3, None),
        // Committed as another version.
        observation(47, seen(106, 4)),
    ] {
        let mut history = sound();
        history.observations.push(forged.clone());
        let found = violations(&history);
        let violation = Violation::NeverWritten(forged);
        assert!(found.contains(&violation), "{violation:?}: {found:?}");
    }
    // One version with two contents.
    let mut history = sound();
    history.writes[4].committed = None;
    let forged = observation(48, seen(103, 4));
    history.observations.push(forged.clone());
    assert!(violations(&history).contains(&Violation::NeverWritten(forged)));
}

#[test]
fn an_order_of_two_writes_is_found() {
    let mut history = sound();
    let torn = observation(
        47,
        Some(Seen {
            version: 105,
            sequence: 4,
            item_sequence: 3,
        }),
    );
    history.observations[7] = torn.clone();
    assert_eq!(violations(&history), [Violation::Torn(torn)]);
}

/// The first server is killed at 20, when versions 100 and 101 had been committed. The second server has only 100, and gives
/// 101 out again.
fn divide(observations: &[Observation]) -> Divided {
    let failover = Failover {
        before: vec![write(Some(1), 100, 0), write(Some(2), 101, 10)],
        after: vec![write(Some(1), 100, 30), write(Some(3), 101, 40)],
        killed: at(20),
        replaced: at(30),
    };
    failover.divide(observations.to_vec(), BOUND)
}

#[test]
fn answers_around_a_failover_are_checked_against_the_history_they_must_belong_to() {
    let of_before = [
        observation(12, seen(101, 2)),
        // Within the lease of the last proof.
        observation(25, seen(101, 2)),
        // Its end was late, because its reader or the process was slow.
        Observation {
            ended: at(33),
            ..observation(24, seen(101, 2))
        },
    ];
    let of_after = [
        // It waited for a server.
        Observation {
            ended: at(42),
            ..observation(24, seen(101, 3))
        },
        Observation {
            ended: at(32),
            ..observation(27, seen(100, 1))
        },
        observation(42, seen(101, 3)),
    ];
    let divided = divide(&[&of_before[..], &of_after[..]].concat());
    assert_eq!(divided.before.observations, of_before);
    assert_eq!(divided.after.observations, of_after);
    assert_eq!(violations(&divided.before), []);
    assert_eq!(violations(&divided.after), []);
    assert_eq!(divided.unproven, []);
}

#[test]
fn answers_that_neither_history_allows_are_found() {
    // The answer of a standby, while the first server was still up or just dead. More had been shown before.
    let back = observation(21, seen(100, 1));
    let divided = divide(&[observation(12, seen(101, 2)), back.clone()]);
    let found = violations(&divided.before);
    assert!(
        matches!(&found[..], [Violation::Stale { .. }, Violation::WentBack { later, .. }] if *later == back)
    );
    // The answer is right, but nobody can know that any more.
    let unproven = observation(26, seen(101, 2));
    assert_eq!(divide(slice::from_ref(&unproven)).unproven, [unproven]);
    // The commit was lost with the first server.
    let lost = observation(31, seen(101, 2));
    let found = violations(&divide(slice::from_ref(&lost)).after);
    assert_eq!(found, [Violation::NeverWritten(lost)]);
}
