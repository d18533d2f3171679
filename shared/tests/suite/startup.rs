//! The first look at the database: what ends a process, and what is waited for.

use std::time::Duration;

use shared::config::{DatabaseSettings, Secret};
use shared::db::{self, StartupError};
use shared::testing::{TcpProxy, TestDatabase, database_settings_from_environment, eventually};
use tokio_util::sync::CancellationToken;

const NAME: &str = "orders-test";

async fn fatal(settings: DatabaseSettings) -> String {
    match db::check(&settings, NAME).await {
        Err(StartupError::Fatal(message)) => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_only_a_person_can_mend_is_fatal_and_says_what_it_is() {
    let server = database_settings_from_environment();
    let wrong_password = DatabaseSettings {
        password: Secret::new("wrong"),
        ..server.clone()
    };
    assert!(
        fatal(wrong_password)
            .await
            .contains("password authentication failed")
    );
    let no_database = DatabaseSettings {
        name: "no_such_database".to_owned(),
        ..server.clone()
    };
    assert!(
        fatal(no_database)
            .await
            .contains("\"no_such_database\" does not exist")
    );
    let no_role = DatabaseSettings {
        user: "nobody".to_owned(),
        ..server
    };
    assert!(fatal(no_role).await.contains("nobody"));
}

#[tokio::test]
async fn a_database_that_cannot_hold_every_order_is_fatal() {
    let server = TestDatabase::create_empty();
    for (encoding, name) in [("LATIN1", "latin1"), ("SQL_ASCII", "ascii")] {
        let name = format!("test_{name}_{}", uuid::Uuid::new_v4().simple());
        let create = [
            "CREATE DATABASE ",
            &name,
            " TEMPLATE template0 LOCALE 'C' ENCODING ",
            encoding,
        ];
        server.execute(&create.concat());
        let settings = DatabaseSettings {
            name: name.clone(),
            ..server.settings()
        };
        let message = fatal(settings).await;
        server.execute(&["DROP DATABASE ", &name].concat());
        assert!(
            message.contains(&format!("has the encoding {encoding}"))
                && message.contains("create one with ENCODING 'UTF8'"),
            "{message}"
        );
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for() {
    let database = TestDatabase::create_empty();
    let proxy = TcpProxy::start(&database.settings().host, database.settings().port).await;
    let settings = DatabaseSettings {
        host: "127.0.0.1".to_owned(),
        port: proxy.port(),
        ..database.settings()
    };
    proxy.cut();
    assert!(matches!(
        db::check(&settings, NAME).await,
        Err(StartupError::Unreachable(_))
    ));
    let shutdown = CancellationToken::new();
    let waiting = tokio::spawn({
        let (settings, shutdown) = (settings.clone(), shutdown.clone());
        async move {
            db::wait_until_reachable(&settings, NAME, &shutdown)
                .await
                .unwrap()
        }
    });
    assert!(!waiting.is_finished());
    proxy.mend();
    eventually("the wait ends", Duration::from_secs(20), async || {
        waiting.is_finished()
    })
    .await;
    assert!(waiting.await.unwrap());

    proxy.cut();
    shutdown.cancel();
    assert!(
        !db::wait_until_reachable(&settings, NAME, &shutdown)
            .await
            .unwrap()
    );
}
