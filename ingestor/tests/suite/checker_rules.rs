//! Tests of the checker: it accepts a correct history and finds each kind of broken promise in a wrong one.

use std::collections::HashMap;

use shared::order::Order;
use shared::testing::OrderGenerator;

use crate::support::checker::{Advance, Evidence, Letter, Violation, Write, violations};
use crate::support::load::{Content, Message};

/// Partition 0: `a` three times, `b` twice and a bad message at 3, in the batches 0..3 and 3..6.
struct History {
    messages: Vec<Message>,
    evidence: Evidence,
}

fn sound() -> History {
    let mut generator = OrderGenerator::new(1, "2026-01-01T00:00:00Z".parse().unwrap());
    let mut order = |uid: &str, sequence: u64| {
        let mut order = generator.order_with_uid(uid);
        order.internal_signature = sequence.to_string().into();
        order
    };
    let bad = b"no order".to_vec();
    let contents = [
        Content::Order(Box::new(order("a", 1))),
        Content::Order(Box::new(order("b", 1))),
        Content::Order(Box::new(order("a", 2))),
        Content::Bad(bad.clone()),
        Content::Order(Box::new(order("a", 3))),
        Content::Order(Box::new(order("b", 2))),
    ];
    let messages: Vec<Message> = (0..)
        .zip(contents)
        .map(|(offset, content)| Message {
            partition: 0,
            offset,
            content,
        })
        .collect();
    let order_at = |offset: usize| match &messages[offset].content {
        Content::Order(order) => Order::clone(order),
        Content::Bad(_) => unreachable!("a bad message at {offset}"),
    };
    let write = |offset: usize, txid: i64| {
        let order = order_at(offset);
        Write {
            uid: order.order_uid.to_string(),
            signature: order.internal_signature.to_string(),
            place: (0, i64::try_from(offset).unwrap()),
            txid,
        }
    };
    let advance = |from, to, txid| Advance {
        partition: 0,
        from,
        to,
        txid,
    };
    let evidence = Evidence {
        // The first message of `a` is superseded within its batch.
        writes: vec![write(2, 10), write(1, 10), write(4, 11), write(5, 11)],
        advances: vec![advance(0, 3, 10), advance(3, 6, 11)],
        letters: vec![Letter {
            place: (0, 3),
            payload: bad,
            txid: 11,
        }],
        orders: HashMap::from([("a".to_owned(), order_at(4)), ("b".to_owned(), order_at(5))]),
        next_offsets: [(0, 6)].into(),
    };
    History { messages, evidence }
}

#[track_caller]
fn assert_found(violation: &Violation, break_it: impl FnOnce(&mut History)) {
    let mut history = sound();
    break_it(&mut history);
    let found = violations(&history.messages, &history.evidence);
    assert!(
        found.contains(violation),
        "{violation:?} is not among {found:?}"
    );
}

#[test]
fn a_correct_history_passes() {
    let History { messages, evidence } = sound();
    assert_eq!(violations(&messages, &evidence), []);
}

#[test]
fn lost_messages_are_found() {
    assert_found(&Violation::Lost((0, 4)), |history| {
        history.evidence.writes.remove(2);
    });
    assert_found(&Violation::Lost((0, 5)), |history| {
        history.evidence.advances.pop();
    });
    let not_settled = Violation::NotSettled {
        partition: 0,
        end: 6,
        next_offset: 3,
    };
    assert_found(&not_settled, |history| {
        history.evidence.next_offsets.insert(0, 3);
    });
}

#[test]
fn repeated_messages_are_found() {
    assert_found(&Violation::AppliedTwice((0, 1)), |history| {
        let mut write = history.evidence.writes[1].clone();
        write.txid = 12;
        history.evidence.writes.insert(2, write);
    });
    let moved_back = Violation::OffsetMoved {
        partition: 0,
        expected: 6,
        found: 3,
    };
    assert_found(&moved_back, |history| {
        let again = history.evidence.advances[1].clone();
        history.evidence.advances.push(again);
    });
}

#[test]
fn a_gap_between_two_batches_is_found() {
    let jumped = Violation::OffsetMoved {
        partition: 0,
        expected: 3,
        found: 4,
    };
    assert_found(&jumped, |history| history.evidence.advances[1].from = 4);
}

#[test]
fn rows_committed_without_their_offset_are_found() {
    assert_found(&Violation::CommittedApart((0, 2)), |history| {
        history.evidence.writes[0].txid = 9;
    });
    assert_found(&Violation::CommittedApart((0, 3)), |history| {
        history.evidence.letters[0].txid = 10;
    });
}

#[test]
fn rows_that_nobody_sent_are_found() {
    assert_found(&Violation::NeverSent((0, 7)), |history| {
        let mut write = history.evidence.writes[3].clone();
        write.place.1 = 7;
        history.evidence.writes.push(write);
    });
    assert_found(&Violation::NeverSent((0, 5)), |history| {
        history.evidence.writes[3].signature = "9".to_owned();
    });
    let uid = "c".to_owned();
    assert_found(&Violation::NotTheLastMessage { uid }, |history| {
        let order = history.evidence.orders["a"].clone();
        history.evidence.orders.insert("c".to_owned(), order);
    });
}

#[test]
fn an_earlier_message_after_a_later_one_is_found() {
    let reordered = Violation::Reordered {
        uid: "a".to_owned(),
        earlier: 2,
        later: 3,
    };
    assert_found(&reordered, |history| history.evidence.writes.swap(0, 2));
}

#[test]
fn an_order_that_is_old_incomplete_or_gone_is_found() {
    let violation = Violation::NotTheLastMessage {
        uid: "a".to_owned(),
    };
    assert_found(&violation, |history| {
        let Content::Order(old) = history.messages[2].content.clone() else {
            unreachable!()
        };
        history.evidence.orders.insert("a".to_owned(), *old);
    });
    assert_found(&violation, |history| {
        let order = history.evidence.orders.get_mut("a").unwrap();
        order.items.pop();
    });
    assert_found(&violation, |history| {
        history.evidence.orders.remove("a");
    });
}

#[test]
fn wrong_dead_letters_are_found() {
    assert_found(&Violation::NoDeadLetter((0, 3)), |history| {
        history.evidence.letters.clear();
    });
    assert_found(&Violation::NoDeadLetter((0, 3)), |history| {
        history.evidence.letters[0].payload.pop();
    });
    assert_found(&Violation::DeadLetterTwice((0, 3)), |history| {
        let again = history.evidence.letters[0].clone();
        history.evidence.letters.push(again);
    });
    assert_found(&Violation::GoodDeadLetter((0, 4)), |history| {
        let mut letter = history.evidence.letters[0].clone();
        letter.place.1 = 4;
        history.evidence.letters.push(letter);
    });
}
