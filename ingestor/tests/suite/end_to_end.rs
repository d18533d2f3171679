//! The main task: an order that was sent to Kafka is returned over HTTP.

use std::time::{Duration, Instant};

use serde_json::Value;
use shared::testing::{InvalidKind, model_json, wait_until};

use crate::support::{Api, PATIENCE, Scene};

const MODEL_UID: &str = "b563feb7b2b84b6test";

#[test]
fn the_model_order_flows_from_kafka_to_http_and_back_to_nothing() {
    let scene = Scene::new(4);
    let daemon = scene.start_daemon();
    let api = Api::start(&scene.database);
    scene.send(Some(MODEL_UID), Some(model_json().as_bytes()));
    scene.flush();
    wait_until("the order is answered", PATIENCE, || {
        api.order(MODEL_UID).status == 200
    });
    let model: Value = serde_json::from_str(model_json()).unwrap();
    assert_eq!(api.order(MODEL_UID).json(), model);

    let path = format!("/api/v1/orders/{MODEL_UID}");
    let mut changed = model.clone();
    changed["payment"]["amount"] = 42.into();
    assert_eq!(
        api.request("PUT", &path, Some(&changed.to_string())).status,
        200
    );
    assert_eq!(api.order(MODEL_UID).json(), changed);
    assert_eq!(api.request("DELETE", &path, None).status, 204);
    assert_eq!(api.order(MODEL_UID).status, 404);

    // What was read is not read again: the deleted order stays deleted.
    assert!(daemon.stop().success());
    let daemon = scene.start_daemon();
    daemon.wait_until_logged("claimed");
    scene.send(None, Some(b"bad"));
    scene.flush();
    scene.wait_until_settled(2);
    assert_eq!(api.order(MODEL_UID).status, 404);
}

#[test]
fn a_new_order_is_readable_within_a_second_and_an_update_is_never_answered_old() {
    let mut scene = Scene::new(4);
    let daemon = scene.start_daemon();
    let api = Api::start(&scene.database);
    // The group is stable once a first order is stored.
    let first = scene.produce_orders(1).remove(0);
    wait_until("the first order is answered", PATIENCE, || {
        api.order(first.order_uid.as_str()).status == 200
    });

    let bad = InvalidKind::MissingField.of(&first).0;
    scene.send(Some("bad"), Some(&bad));
    let mut order = scene.produce_orders(1).remove(0);
    for _ in 0..5 {
        let sent_at = Instant::now();
        let expected = serde_json::to_value(&order).unwrap();
        let uid = order.order_uid.as_str().to_owned();
        wait_until("the new state is answered", Duration::from_secs(1), || {
            let answer = api.order(&uid);
            answer.status == 200 && answer.json() == expected
        });
        assert!(sent_at.elapsed() < Duration::from_secs(1));
        order = scene.later(&uid);
        scene.produce(std::slice::from_ref(&order));
    }
    scene.wait_until_settled(8);
    assert_eq!((scene.stored(), scene.dead_letters()), (2, 1));
    assert!(daemon.stop().success());
}
