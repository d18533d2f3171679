//! Where reading starts, and what stops it.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use ingestor::batch::Batch;
use ingestor::kafka::Watermarks;
use ingestor::offsets::{self, Claim, ClaimOutcome, Reread, Sighting, Standing};
use ingestor::record::{Consumer, Incarnation, Offset, Partition, Position, Reading};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use shared::db::rights::Role;
use shared::testing::wait_until;

use crate::support::{PATIENCE, Scene};

const P0: Partition = Partition(0);

#[test]
fn at_rest_the_lag_is_zero_even_after_transaction_markers() {
    let mut scene = Scene::new(1);
    let order = serde_json::to_vec(&scene.later("in-a-transaction")).unwrap();
    let aborted = serde_json::to_vec(&scene.later("aborted")).unwrap();
    let producer = transactional_producer(&scene);
    begin_with(&producer, &scene, "a", &order);
    producer.commit_transaction(PATIENCE).unwrap();
    begin_with(&producer, &scene, "b", &aborted);
    producer.flush(PATIENCE).unwrap();
    producer.abort_transaction(PATIENCE).unwrap();

    // Two records and two markers.
    let daemon = scene.start_daemon();
    scene.wait_until_settled(4);
    assert_eq!(
        scene
            .database
            .texts("SELECT order_uid AS value FROM orders"),
        ["in-a-transaction"]
    );
    wait_until("the lag is told, and is 0", PATIENCE, || {
        let told = |(_, text): (u16, String)| text.contains("orders_ingestor_lag_records{");
        daemon.get("/metrics").is_some_and(told)
            && daemon.metric("orders_ingestor_lag_records").abs() < f64::EPSILON
    });
    scene.produce_orders(1);
    // One more order, which nothing follows.
    scene.wait_until_settled(5);
}

#[test]
fn records_behind_an_open_transaction_count_as_lag() {
    let mut scene = Scene::new(1);
    let daemon = scene.start_daemon();
    scene.produce_orders(2);
    scene.wait_until_settled(2);
    let order = serde_json::to_vec(&scene.later("in-a-transaction")).unwrap();
    let producer = transactional_producer(&scene);
    begin_with(&producer, &scene, "a", &order);
    producer.flush(PATIENCE).unwrap();
    // They are in no transaction, but they stand behind it.
    scene.produce_orders(5);

    let is = |name: &str, expected: f64| (daemon.metric(name) - expected).abs() < f64::EPSILON;
    wait_until("the lag counts to the end of the log", PATIENCE, || {
        is("orders_ingestor_lag_records", 6.0) && is("orders_ingestor_unstable_records", 6.0)
    });
    wait_until("the lag in seconds grows", PATIENCE, || {
        daemon.metric("orders_ingestor_lag_seconds") > 1.0
    });
    let (_, health) = daemon.get("/health").unwrap();
    let health: Value = serde_json::from_str(&health).unwrap();
    let partition = &health["checks"]["partitions"][0];
    assert_eq!(
        (&partition["lag_records"], &partition["unstable_records"]),
        (&6.into(), &6.into())
    );
    let shown: Value =
        serde_json::from_str(&scene.run_well(&["offsets", "show", "--json"])).unwrap();
    let partition = &shown["partitions"][0];
    for (field, expected) in [
        ("next_offset", 2),
        ("last_stable_offset", 2),
        ("high_watermark", 8),
        ("lag_records", 6),
        ("unstable_records", 6),
    ] {
        assert_eq!(partition[field], expected, "{field}");
    }
    let table = scene.run_well(&["offsets", "show"]);
    assert!(
        table.contains("partition 0: 6 records wait behind an open transaction"),
        "{table}"
    );
    assert_eq!(scene.settled(), 2);

    producer.commit_transaction(PATIENCE).unwrap();
    scene.wait_until_settled(9);
    wait_until("the lag is 0", PATIENCE, || {
        is("orders_ingestor_lag_records", 0.0) && is("orders_ingestor_unstable_records", 0.0)
    });
    assert!(!scene.run_well(&["offsets", "show"]).contains("transaction"));
}

/// Begins a transaction with one record.
fn begin_with(producer: &BaseProducer, scene: &Scene, key: &str, payload: &[u8]) {
    producer.begin_transaction().unwrap();
    producer
        .send(BaseRecord::to(&scene.topic).key(key).payload(payload))
        .map_err(|(error, _)| error)
        .unwrap();
}

fn transactional_producer(scene: &Scene) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", scene.brokers())
        .set("transactional.id", &scene.topic)
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer
}

#[test]
fn an_offset_beyond_the_topics_end_stops_the_partition_loudly() {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(10);
    assert!(daemon.stop().success());
    scene
        .database
        .execute("UPDATE consumer_offsets SET next_offset = 100");

    let daemon = scene.start_daemon();
    wait_until("the incident is recorded", PATIENCE, || {
        scene
            .database
            .integer("SELECT count(*) AS value FROM offset_incidents WHERE kind = 'truncated'")
            == 1
    });
    wait_until("the process is degraded", PATIENCE, || {
        daemon
            .get("/health")
            .is_some_and(|(status, body)| status == 200 && body.contains("degraded"))
    });
    assert!(daemon.log().contains("the partition is not read"));
    assert!((daemon.metric("orders_ingestor_offset_incidents_total") - 1.0).abs() < f64::EPSILON);
    assert!((daemon.metric("orders_ingestor_paused_partitions") - 1.0).abs() < f64::EPSILON);
    scene.produce_orders(5);
    assert_eq!(scene.settled(), 100, "nothing may be skipped silently");
}

#[test]
fn a_rewind_reaches_a_running_owner_and_replaces_nothing_newer() {
    let mut scene = Scene::new(2);
    let orders = scene.produce_orders(40);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(40);
    let uid = |number: usize| orders[number].order_uid.as_str();
    // One order is changed by a PUT, one by a later message, and one is deleted.
    let later = scene.later(uid(1));
    scene.produce(std::slice::from_ref(&later));
    scene.wait_until_settled(41);
    let change = format!(
        "UPDATE orders SET source_partition = NULL, source_offset = NULL, source_incarnation = NULL, track_number = 'PUT' WHERE order_uid = '{}';
         DELETE FROM orders WHERE order_uid = '{}'",
        uid(0),
        uid(2)
    );
    scene.database.execute(&change);
    let versions = "SELECT string_agg(order_uid || ' ' || version, ',' ORDER BY order_uid COLLATE \"C\") AS value
                    FROM orders WHERE order_uid <> ";
    let versions = format!("{versions}'{}'", uid(2));
    let before = scene.database.texts(&versions);

    scene
        .database
        .execute("UPDATE consumer_offsets SET next_offset = 0");
    wait_until("everything is read again", PATIENCE, || {
        scene.settled() == 41
    });
    assert!(daemon.log().contains("fenced"));
    assert_eq!(
        scene.database.texts(&versions),
        before,
        "a replay has written over something"
    );
    assert_eq!(scene.stored(), 40, "a deleted order comes back");
    // New records replace orders again, even in the first batch after the replay.
    let newest = scene.later(uid(0));
    scene.produce(std::slice::from_ref(&newest));
    scene.wait_until_settled(42);
    let tracks = format!(
        "SELECT track_number AS value FROM orders WHERE order_uid = '{}'",
        uid(0)
    );
    assert_eq!(
        scene.database.texts(&tracks),
        [newest.track_number.to_string()]
    );
}

#[test]
fn a_new_group_on_a_topic_that_another_has_read_is_refused() {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(10);
    assert!(daemon.stop().success());
    scene.group = format!("other-{}", scene.group);
    let daemon = scene.start_daemon();
    daemon.wait_until_logged("ingestor offsets init");
    assert_eq!(
        scene
            .database
            .integer("SELECT count(*) AS value FROM consumer_offsets"),
        1
    );
}

#[test]
fn partitions_that_are_added_are_read_from_their_start() {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    let daemon = scene.start_daemon_with(&[(
        "KAFKA_CONFIG",
        "topic.metadata.refresh.interval.ms=500,session.timeout.ms=6000",
    )]);
    scene.wait_until_settled(10);
    scene.add_partitions(3);
    scene.produce_orders(100);
    scene.wait_until_settled(110);
    assert_eq!(scene.stored(), 110);
    let epochs = "SELECT count(*) AS value FROM consumer_offsets WHERE epoch >= 1";
    assert_eq!(scene.database.integer(epochs), 3);
    let mut daemon = daemon;
    daemon.signal(rustix::process::Signal::INT);
    assert!(daemon.wait(Duration::from_secs(15)).success());
}

#[test]
fn a_session_of_ours_that_holds_a_partitions_row_is_ended_and_no_other() {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(10);
    assert!(daemon.stop().success());
    // One session is frozen inside a batch; a bystander has a transaction of its own. A role may end its own sessions.
    let mut frozen = scene.database.connect_as(Role::Ingestor);
    frozen
        .batch_execute(
            "SET application_name = 'orders-ingestor'; BEGIN; UPDATE consumer_offsets SET updated_at = now()",
        )
        .unwrap();
    let mut bystander = scene.database.connect();
    bystander
        .batch_execute("BEGIN; CREATE TABLE bystander (); SELECT pg_advisory_lock(1)")
        .unwrap();

    let daemon = scene.start_daemon();
    scene.produce_orders(5);
    scene.wait_until_settled(15);
    assert!(
        daemon
            .log()
            .contains("ended a session of ours that held the partition's row")
    );
    bystander.batch_execute("COMMIT").unwrap();
    assert!(frozen.batch_execute("COMMIT").is_err());
}

#[test]
fn an_operators_transaction_on_a_partitions_row_is_waited_for_and_named() {
    let mut scene = Scene::new(1);
    scene.produce_orders(10);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(10);
    assert!(daemon.stop().success());
    let mut operator = scene.database.connect_foreign();
    operator
        .batch_execute(
            "SET application_name = 'psql'; BEGIN; SELECT FROM consumer_offsets FOR UPDATE",
        )
        .unwrap();
    scene.produce_orders(5);
    let daemon = scene.start_daemon();
    daemon.wait_until_logged("has locked the row of partition 0 in consumer_offsets");
    assert!(daemon.log().contains("another session (\"psql\" with pid "));
    let (code, health) = daemon.get("/health").unwrap();
    assert!(code == 200 && health.contains("psql"), "{health}");
    operator.batch_execute("COMMIT").unwrap();
    scene.wait_until_settled(15);
    assert!(!daemon.log().contains("ended a session"));
}

#[test]
fn records_deleted_before_the_first_start_are_no_loss_but_later_ones_are_an_incident() {
    let mut scene = Scene::new(1);
    scene.produce_orders(100);
    scene.delete_records_below(50);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(100);
    assert_eq!(scene.stored(), 50);
    assert!(daemon.stop().success());

    scene.produce_orders(100);
    scene.delete_records_below(150);
    let daemon = scene.start_daemon();
    daemon.wait_until_logged("records 100..150 were deleted before they were read");
    assert_eq!(scene.settled(), 100, "nothing may be skipped silently");
}

#[test]
fn a_partition_is_never_fetched_from_an_offset_that_the_broker_does_not_hold() {
    // The client's thread that fetches gets the time to wake up.
    let slowly_moved = [("FAILPOINTS", "moving=sleep(1100)")];
    let mut scene = Scene::new(1);
    // First the partition is empty. Then all records that were read are deleted.
    for round in 1..=2 {
        let daemon = scene.start_daemon_with(&slowly_moved);
        daemon.wait_until_logged("claimed");
        // Records that arrive earlier would make offset 1 valid.
        std::thread::sleep(Duration::from_secs(3));
        scene.produce_orders(10);
        scene.wait_until_settled(10 * round);
        let log = daemon.log();
        assert_eq!(log.matches("claimed kafka.partition").count(), 1, "{log}");
        assert!(daemon.stop().success());
        scene.delete_records_below(10 * round);
    }
}

/// A batch of partition 0 without orders, as if its records had been superseded.
fn batch(from: i64, to: i64) -> Batch {
    let reading = Reading {
        partition: P0,
        generation: 1,
    };
    let mut batch = Batch::open(reading, Offset(from));
    batch.reach(Offset(to));
    batch.last_record = Some(Position {
        offset: Offset(to - 1),
        timestamp_ms: None,
    });
    batch
}

#[test]
fn the_database_rejects_everybody_except_the_owner_at_this_offset() {
    let database = shared::testing::TestDatabase::create();
    let mut connection = database.connect();
    let consumer = |owner| Consumer {
        group_id: "group".to_owned(),
        topic: "topic".to_owned(),
        owner,
    };
    let (old, new) = (
        consumer(uuid::Uuid::new_v4()),
        consumer(uuid::Uuid::new_v4()),
    );
    assert_eq!(
        offsets::initialise(&mut connection, &old, &[(P0, Offset(5))]).unwrap(),
        None
    );
    let mut claim = |consumer: &Consumer| {
        let sighting = Sighting {
            incarnation: Incarnation(1),
            watermarks: Watermarks {
                low: Offset(0),
                high: Offset(100),
            },
            change: None,
        };
        match offsets::claim(&mut connection, consumer, P0, &sighting, true).unwrap() {
            ClaimOutcome::Claimed(claim) => claim,
            other => panic!("{other:?}"),
        }
    };
    let old_claim = claim(&old);
    let new_claim = claim(&new);
    assert_eq!(
        (old_claim.next_offset, new_claim.epoch),
        (Offset(5), old_claim.epoch.next())
    );

    let advance = |consumer: &Consumer, claim: &Claim, from, to| {
        offsets::advance(
            &mut database.connect(),
            consumer,
            claim,
            &batch(from, to),
            false,
        )
    };
    for (who, consumer, claim, from) in [
        ("the owner before", &old, &old_claim, 5),
        ("the owner before, under the new epoch", &old, &new_claim, 5),
        ("the owner, under an old epoch", &new, &old_claim, 5),
        ("the owner, behind", &new, &new_claim, 4),
        ("the owner, ahead", &new, &new_claim, 6),
    ] {
        let refusal = advance(consumer, claim, from, 9).expect_err(who);
        assert!(offsets::is_fence(&refusal), "{who}: {refusal}");
    }
    advance(&new, &new_claim, 5, 9).unwrap();
    assert_eq!(
        database.integer("SELECT next_offset AS value FROM consumer_offsets"),
        9
    );

    // Even a session of ours is left alone by a re-read: its COMMIT may be what the re-read waits for.
    let mut holder = database.connect();
    holder
        .batch_execute("BEGIN; SELECT FROM consumer_offsets FOR UPDATE")
        .unwrap();
    let reread = || offsets::reread(&mut database.connect(), &new, P0, new_claim.epoch).unwrap();
    assert_eq!(reread(), Reread::Locked);
    let held = advance(&new, &new_claim, 9, 11);
    assert_eq!(held, Err(diesel::result::Error::NotFound));
    holder.batch_execute("COMMIT").unwrap();
    assert_eq!(reread(), Reread::Ours(Offset(9)));
    advance(&new, &new_claim, 9, 11).unwrap();

    // A row that is gone is lost, and nothing is advanced.
    database.execute("DELETE FROM consumer_offsets");
    assert_eq!(reread(), Reread::Lost);
    let missing = advance(&new, &new_claim, 11, 12);
    assert_eq!(missing, Err(diesel::result::Error::NotFound));
}

#[test]
fn members_that_start_at_once_do_not_take_each_other_for_another_group() {
    let database = shared::testing::TestDatabase::create();
    let mut first = database.connect();
    let mut others = [(); 3].map(|()| database.connect());
    for round in 0..100 {
        let consumer = Consumer {
            group_id: "group".to_owned(),
            topic: format!("topic-{round}"),
            owner: uuid::Uuid::new_v4(),
        };
        std::thread::scope(|scope| {
            for connection in &mut others {
                let consumer = &consumer;
                scope.spawn(move || {
                    loop {
                        match offsets::standing(connection, consumer, P0).unwrap() {
                            Standing::Missing => {}
                            Standing::Claimable(_) => break,
                            Standing::Stopped(reason) => panic!("{reason}"),
                        }
                    }
                });
            }
            let lows = [(P0, Offset(0))];
            let made = offsets::initialise(&mut first, &consumer, &lows).unwrap();
            assert_eq!(made, None);
        });
    }
}
