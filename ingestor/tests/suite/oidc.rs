//! Kafka's SASL/OAUTHBEARER with an identity provider: the clients fetch tokens and renew them.

use std::time::Duration;

use servers::kafka::PrivateKafka;
use shared::testing::{TestDatabase, wait_until};

use crate::support::token_endpoint::{CLIENT, TokenEndpoint};
use crate::support::{Daemon, PATIENCE, Scene, create_topic};

/// How long a token lives. It is renewed after four fifths of that, and a broker refuses a client that authenticates again
/// within a second.
const LIFETIME: Duration = Duration::from_secs(12);
/// The group's consumer, the two of the probe, and the relay's producer.
const CLIENTS: usize = 4;

#[test]
fn every_client_authenticates_by_oidc_and_renews_its_token() {
    let endpoint = TokenEndpoint::start(LIFETIME);
    let kafka = kafka();
    let mut scene = Scene::with_servers(1, TestDatabase::create(), kafka.bootstrap(), &[]);
    let dlq = format!("{}-dlq", scene.topic);
    create_topic(scene.brokers(), &dlq, 1, &[]);
    let settings: Vec<String> = (endpoint.client_settings().iter())
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let file = std::env::temp_dir().join(format!("oidc-{}", uuid::Uuid::new_v4()));
    std::fs::write(&file, settings.join("\n")).unwrap();
    let environment = [
        ("KAFKA_BROKERS", &*kafka.sasl_bootstrap().unwrap()),
        ("KAFKA_CONFIG_FILE", file.to_str().unwrap()),
        ("KAFKA_DLQ_TOPIC", &dlq),
    ];

    let daemon = scene.start_daemon_with(&environment);
    // The group's consumer, the probe and the relay all reach Kafka.
    produce_and_settle(&mut scene, &daemon, 1);
    wait_until("the lag is told", PATIENCE, || {
        let (_, text) = daemon.get("/metrics").unwrap();
        text.contains("orders_ingestor_lag_records{")
    });
    let issued = endpoint.issued();
    wait_until("every client has renewed its token twice", PATIENCE, || {
        endpoint.issued() >= issued + 2 * CLIENTS
    });
    produce_and_settle(&mut scene, &daemon, 2);

    // The broker ends a session whose token is not renewed.
    endpoint.set_refusing(true);
    daemon.wait_until_logged("invalid_client");
    daemon.wait_until_logged("SASL authentication error");
    scene.produce_orders(1);
    assert_eq!(scene.settled(), 4);
    endpoint.set_refusing(false);
    scene.wait_until_settled(5);

    endpoint.set_refusing(true);
    let shown = scene.run_with(&["offsets", "show"], &environment);
    assert!(
        shown.stdout.contains("the lag is not known") && shown.stdout.contains("invalid_client"),
        "{shown:?}"
    );
    endpoint.set_refusing(false);
    let shown = scene.run_with(&["offsets", "show"], &environment);
    assert!(
        shown.success && !shown.stdout.contains("not known"),
        "{shown:?}"
    );
    let checked = scene.run_with(&["--check-config"], &environment);
    assert!(
        checked.stdout.contains("sasl.oauthbearer.method=oidc"),
        "{checked:?}"
    );
    let log = daemon.log();
    for text in [&checked.stdout, &log] {
        // A token begins with the first bytes of its header.
        assert!(!text.contains(CLIENT.1) && !text.contains("eyJ"), "{text}");
    }
    std::fs::remove_file(&file).ok();
}

/// A broker whose clients authenticate by tokens. It ends a session when its token expires, unless the client renews it.
fn kafka() -> PrivateKafka {
    const LISTENER: &str = "listener.name.sasl_plaintext.oauthbearer";
    PrivateKafka::start_with_sasl(&[
        ("sasl.enabled.mechanisms", "OAUTHBEARER"),
        (
            &format!("{LISTENER}.sasl.jaas.config"),
            "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required \
             unsecuredLoginStringClaim_sub=\"broker\";",
        ),
        (&format!("{LISTENER}.connections.max.reauth.ms"), "3600000"),
    ])
    .unwrap()
}

/// Produces an order and a message that is none, and waits until both are where they belong.
fn produce_and_settle(scene: &mut Scene, daemon: &Daemon, round: i32) {
    scene.produce_orders(1);
    scene.send(None, Some(b"not an order"));
    scene.flush();
    scene.wait_until_settled(i64::from(2 * round));
    wait_until("the dead letters are relayed", PATIENCE, || {
        daemon.metric("orders_ingestor_dead_letters_relayed_total") >= f64::from(round)
    });
}
