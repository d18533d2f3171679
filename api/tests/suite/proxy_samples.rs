//! The samples of `deploy/proxies` in front of the api, and proxies that are set up carelessly.

use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use servers::proxy::{PrivateProxy, ProxyProgram};
use shared::testing::TestDatabase;
use tokio::task::{block_in_place, spawn_blocking};

use crate::support::program::Program;
use crate::support::tokens::{TokenFile, bearer};
use crate::support::{Answer, TestApi, generator, model, store};

const NGINX: &str = include_str!("../../../deploy/proxies/nginx.conf");
const CADDY: &str = include_str!("../../../deploy/proxies/Caddyfile");

/// A certificate for `localhost`, which is removed with the value.
struct Certificate {
    folder: PathBuf,
}

impl Certificate {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("certificate-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = Self { folder };
        std::fs::write(certificate.pem(), cert.pem()).unwrap();
        std::fs::write(certificate.key(), signing_key.serialize_pem()).unwrap();
        certificate
    }

    fn pem(&self) -> PathBuf {
        self.folder.join("certificate.pem")
    }

    fn key(&self) -> PathBuf {
        self.folder.join("certificate.key")
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

/// Replaces what an operator changes in a sample. Each text must be there.
fn adapt(sample: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(sample.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from:?} is not in the sample");
        text.replace(from, to)
    })
}

fn start_sample(program: ProxyProgram, api: &Program, certificate: &Certificate) -> PrivateProxy {
    let backend = format!("127.0.0.1:{}", api.port);
    let (pem, key) = (certificate.pem(), certificate.key());
    let (pem, key) = (pem.to_str().unwrap(), key.to_str().unwrap());
    let site = |port: u16| match program {
        ProxyProgram::Caddy => {
            let site = format!("https://localhost:{port} {{\n\ttls {pem} {key}\n");
            adapt(
                CADDY,
                &[("orders.example {", &site), ("127.0.0.1:8081", &backend)],
            )
        }
        _ => {
            let listen = format!("listen 127.0.0.1:{port} ssl");
            let changes = [
                ("listen 443 ssl", listen.as_str()),
                ("orders.example;", "localhost;"),
                ("/etc/ssl/orders.example.pem", pem),
                ("/etc/ssl/orders.example.key", key),
                ("127.0.0.1:8081", &backend),
            ];
            adapt(NGINX, &changes)
        }
    };
    block_in_place(|| PrivateProxy::start_with(program, site)).unwrap()
}

/// Runs curl, and returns what it prints.
async fn curl(certificate: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--max-time", "20", "--cacert"])
        .arg(certificate)
        .args(arguments);
    let output = spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap();
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

async fn check_sample(program: ProxyProgram) {
    let database = TestDatabase::create();
    store(&database, &model());
    let mut generator = generator();
    for _ in 0..50 {
        store(&database, &generator.next_order());
    }
    let file = TokenFile::new(&[("shop", "read,write")]);
    let settings = [
        ("API_TOKENS_FILE", file.path.to_str().unwrap()),
        ("TRUSTED_PROXIES", "127.0.0.1"),
        ("LOG_ACCESS", "all"),
        ("LOG_FORMAT", "json"),
    ];
    let api = Program::start(&database, &settings).await;
    let certificate = Certificate::new();
    let pem = certificate.pem();
    let proxy = start_sample(program, &api, &certificate);
    let url = |path: &str| format!("https://localhost:{}{path}", proxy.port());
    let token = format!("Authorization: {}", bearer("shop"));
    let status = ["--output", "/dev/null", "--write-out", "%{http_code}"];
    let order = url("/order/b563feb7b2b84b6test");

    let open = curl(&pem, &[&status[..], &[&order]].concat()).await;
    assert_eq!(open, "401", "{program:?}");
    let spoofed = [
        "--header",
        &token,
        "--header",
        "X-Forwarded-For: 203.0.113.9",
    ];
    let read = curl(&pem, &[&status[..], &spoofed, &[&order]].concat()).await;
    assert_eq!(read, "200", "{program:?}");
    let metrics = curl(
        &pem,
        &[&status[..], &["--header", &token, &url("/metrics")]].concat(),
    )
    .await;
    assert_eq!(metrics, "404", "{program:?}");

    let body = serde_json::to_string(&model()).unwrap();
    let put = put_of(&token, &body);
    let written = curl(
        &pem,
        &[
            &status[..],
            &put,
            &[&url("/api/v1/orders/b563feb7b2b84b6test")],
        ]
        .concat(),
    )
    .await;
    assert_eq!(written, "200", "{program:?}");
    let large = format!("@{}", large_body(&certificate));
    let put = put_of(&token, &large);
    let refused = curl(
        &pem,
        &[&put[..], &[&url("/api/v1/orders/b563feb7b2b84b6test")]].concat(),
    )
    .await;
    assert!(refused.contains("body_too_large"), "{program:?}: {refused}");

    let export = [
        "--header",
        &token,
        "--header",
        "Accept: application/x-ndjson",
        &url("/api/v1/orders"),
    ];
    assert_eq!(curl(&pem, &export).await.lines().count(), 51, "{program:?}");

    // An event must pass while the answer goes on: curl gives up after its time, or ends with the first line of it.
    let feed = url("/api/v1/events");
    let follow = format!(
        "curl --silent --no-buffer --max-time 20 --cacert {} --header '{token}' {feed} | grep --max-count 1 '^data:.*{}'",
        pem.display(),
        model().order_uid,
    );
    let following = spawn_blocking(move || Command::new("sh").args(["-c", &follow]).output());
    let mut attempts = 0;
    let event = loop {
        // The feed may not be open yet, so the order changes until the event has come.
        curl(
            &pem,
            &[
                &status[..],
                &put_of(&token, &body),
                &[&url("/api/v1/orders/b563feb7b2b84b6test")],
            ]
            .concat(),
        )
        .await;
        attempts += 1;
        if following.is_finished() || attempts == 200 {
            break following.await.unwrap().unwrap();
        }
    };
    let event = String::from_utf8_lossy(&event.stdout).into_owned();
    assert!(event.contains("upsert"), "{program:?}: {event:?}");

    let log = api.log();
    let lines = log.lines().filter(|line| line.contains("api::access"));
    let through_proxy = lines
        .filter(|line| line.contains("\"route\":\"order\""))
        .count();
    assert!(through_proxy >= 3, "{log}");
    assert!(
        !log.contains("203.0.113.9"),
        "a client cannot claim an address: {log}"
    );
}

fn put_of<'a>(token: &'a str, body: &'a str) -> [&'a str; 8] {
    [
        "--request",
        "PUT",
        "--header",
        token,
        "--header",
        "Content-Type: application/json",
        "--data-binary",
        body,
    ]
}

/// Writes a body that the api refuses, and returns its path.
fn large_body(certificate: &Certificate) -> String {
    let path = certificate.folder.join("large.json");
    std::fs::write(&path, vec![b' '; 1024 * 1024]).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_for_nginx_passes_on_what_clients_need_and_nothing_else() {
    check_sample(ProxyProgram::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_for_caddy_passes_on_what_clients_need_and_nothing_else() {
    check_sample(ProxyProgram::Caddy).await;
}

/// Sends a request of a stranger to a proxy on the api's machine.
async fn through(site: &str, program: ProxyProgram, method: &str) -> Answer {
    let api = TestApi::start().await;
    let site = site.replace("BACKEND", &api.port.to_string());
    let start = |port: u16| site.replace("PORT", &port.to_string());
    let proxy = block_in_place(|| PrivateProxy::start_with(program, start)).unwrap();
    let request = format!(
        "{method} /api/v1/orders/b563feb7b2b84b6test HTTP/1.1\r\nHost: orders.example\r\nConnection: close\r\n\r\n"
    );
    crate::support::send_bytes(proxy.port(), request.as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_careless_proxy_opens_nothing_to_strangers() {
    // Both rewrite `Host` to that of the api, which is loopback.
    let nginx = "server {\nlisten 127.0.0.1:PORT;\nlocation / {\nproxy_pass http://127.0.0.1:BACKEND;\n}\n}\n";
    let caddy = "http://:PORT {\nreverse_proxy 127.0.0.1:BACKEND {\nheader_up Host 127.0.0.1:BACKEND\n}\n}\n";
    for (program, site) in [(ProxyProgram::Nginx, nginx), (ProxyProgram::Caddy, caddy)] {
        for (method, code) in [("GET", "reads_disabled"), ("DELETE", "writes_disabled")] {
            let answer = through(site, program, method).await;
            assert_eq!(answer.problem().1, code, "{program:?} {method}");
        }
    }
}
