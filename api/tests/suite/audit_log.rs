//! The log line of each write.

use serde_json::Value;
use shared::testing::TestDatabase;

use crate::support::program::Program;
use crate::support::tokens::{TokenFile, bearer};
use crate::support::{model, store};

const TOKEN: &str = "s3cret-token-of-the-log";

#[tokio::test(flavor = "multi_thread")]
async fn every_write_is_logged_with_its_request_and_its_outcome_but_no_personal_data() {
    let database = TestDatabase::create();
    store(&database, &model());
    let settings = [("LOG_FORMAT", "json"), ("API_TOKEN", TOKEN)];
    let program = Program::start(&database, &settings).await;
    let body = serde_json::to_string(&model()).unwrap();
    let version = "SELECT version AS value FROM orders";
    let stored = database.integer(version);
    let (mut written, mut created) = (0, 0);
    for (id, method, token, more) in [
        ("mismatch", "PUT", TOKEN, "If-Match: \"0\"\r\n"),
        ("put", "PUT", TOKEN, ""),
        ("stranger", "DELETE", "wrong-token", ""),
        ("delete", "DELETE", TOKEN, ""),
        ("absent", "DELETE", TOKEN, ""),
        ("create", "POST", TOKEN, ""),
        ("exists", "POST", TOKEN, ""),
        ("exists-put", "PUT", TOKEN, "If-None-Match: *\r\n"),
    ] {
        let body = if method == "DELETE" {
            ""
        } else {
            body.as_str()
        };
        let path = match method {
            "POST" => "/api/v1/orders",
            _ => "/api/v1/orders/b563feb7b2b84b6test",
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {id}\r\n\
             Authorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{more}\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        program.send(&request).await;
        match id {
            "put" => written = database.integer(version),
            "create" => created = database.integer(version),
            _ => {}
        }
    }
    let log = program.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| line["message"] == "write")
        .collect();
    let seen: Vec<_> = lines
        .iter()
        .map(|line| {
            assert_eq!(line["level"], "INFO");
            assert_eq!(line["order.id"], "b563feb7b2b84b6test");
            assert_eq!(line["token"], "API_TOKEN");
            // Clients choose the other id.
            let own_id = line["span"]["request.own_id"].as_str().unwrap();
            assert_eq!(own_id.len(), 32, "{own_id}");
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (
                text(&line["span"]["request.id"]),
                text(&line["operation"]),
                text(&line["outcome"]),
                line["version"].as_i64(),
            )
        })
        .collect();
    let expected = [
        ("mismatch", "put", "version_mismatch", Some(stored)),
        ("put", "put", "done", Some(written)),
        ("delete", "delete", "done", Some(written)),
        ("absent", "delete", "order_not_found", None),
        ("create", "post", "created", Some(created)),
        ("exists", "post", "order_exists", Some(created)),
        ("exists-put", "put", "version_mismatch", Some(created)),
    ];
    let expected = expected.map(|(id, operation, outcome, version)| {
        (id.into(), operation.into(), outcome.into(), version)
    });
    assert_eq!(seen, expected);
    let order = model();
    for secret in [
        TOKEN,
        "wrong-token",
        &order.delivery.name,
        &order.delivery.email,
        &order.delivery.phone,
    ] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_tells_of_refusals_or_of_all_requests_but_of_no_order() {
    let database = TestDatabase::create();
    store(&database, &model());
    for (which, expected) in [
        ("off", &[][..]),
        ("refused", &["401"]),
        ("all", &["200", "401", "200"]),
    ] {
        let settings = [
            ("LOG_FORMAT", "json"),
            ("API_TOKEN", TOKEN),
            ("LOG_ACCESS", which),
            ("TRUSTED_PROXIES", "127.0.0.0/8"),
        ];
        let program = Program::start(&database, &settings).await;
        for token in [TOKEN, "wrong-token", "wrong-token", TOKEN] {
            let request = format!(
                "GET /api/v1/orders?customer_id=canary HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.7\r\n\
                 Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
            );
            program.send(&request).await;
        }
        let log = program.log();
        let lines = log.lines().filter(|line| line.contains("api::access"));
        let lines: Vec<Value> = lines
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|line: &Value| line["route"] == "orders")
            .collect();
        let mut statuses: Vec<_> = lines
            .iter()
            .map(|line| line["status_code"].to_string())
            .collect();
        // The second refusal comes within a second of the first one, and is only counted.
        statuses.dedup();
        assert_eq!(statuses, expected, "{which}: {log}");
        for line in &lines {
            assert_eq!(
                (&line["client"], &line["peer"]),
                (&"192.0.2.7".into(), &"127.0.0.1".into())
            );
            let token = if line["status_code"] == 401 {
                Value::Null
            } else {
                "API_TOKEN".into()
            };
            assert_eq!(line["token"], token, "{line}");
        }
        assert!(!log.contains("canary") && !log.contains(TOKEN), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_lacks_a_scope_is_named_in_the_log() {
    let file = TokenFile::new(&[("shop", "read")]);
    let settings = [
        ("API_TOKENS_FILE", file.path.to_str().unwrap()),
        ("LOG_FORMAT", "json"),
    ];
    let program = Program::start(&TestDatabase::create(), &settings).await;
    let request = format!(
        "DELETE /api/v1/cache HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\nConnection: close\r\n\r\n",
        bearer("shop")
    );
    assert_eq!(program.send(&request).await.status, 403);
    let log = program.log();
    let line = log
        .lines()
        .find(|line| line.contains("api::access"))
        .unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (&line["token"], &line["status_code"]),
        (&"shop".into(), &403.into())
    );
}
