//! The five `sslmode`s, by both drivers, against a server whose certificate a private CA has signed.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use servers::postgres::{Options, PrivatePostgres, TlsFiles};
use shared::config::{DatabaseSettings, SslMode};
use shared::db::{self, StartupError};
use shared::testing::settings_of;

const NAME: &str = "orders-test";

struct Scene {
    server: PrivatePostgres,
    folder: PathBuf,
}

impl Scene {
    /// A server whose certificate is for `localhost`, not for `127.0.0.1`.
    fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("orders-tls-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        let ca = authority();
        std::fs::write(folder.join("right.pem"), ca.pem()).unwrap();
        std::fs::write(folder.join("wrong.pem"), authority().pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["localhost".to_owned()])
            .unwrap()
            .signed_by(&key, &ca)
            .unwrap();
        let files = TlsFiles {
            certificate: folder.join("server.pem"),
            key: folder.join("server.key"),
        };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        let server = PrivatePostgres::start(&Options {
            tls: Some(files),
            ..Options::default()
        })
        .unwrap();
        Self { server, folder }
    }

    fn settings(&self, host: &str, sslmode: SslMode, ca: Option<&str>) -> DatabaseSettings {
        DatabaseSettings {
            host: host.to_owned(),
            sslmode,
            sslrootcert: ca.map(|name| self.folder.join(name)),
            ..settings_of(&self.server)
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, uuid::Uuid::new_v4().to_string());
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

async fn assert_passes(settings: DatabaseSettings) {
    if let Err(error) = db::check(&settings, NAME).await {
        panic!("tokio-postgres: {settings:?}: {error}");
    }
    if let Err(error) = db::connect_blocking(&settings, NAME) {
        panic!("libpq: {settings:?}: {error}");
    }
}

async fn assert_refused(settings: DatabaseSettings) -> String {
    assert!(
        db::connect_blocking(&settings, NAME).is_err(),
        "libpq passes: {settings:?}"
    );
    match db::check(&settings, NAME).await {
        Err(StartupError::Fatal(message)) => message,
        other => panic!("{settings:?}: {other:?}"),
    }
}

#[tokio::test]
async fn every_mode_checks_what_it_promises_and_no_more() {
    let scene = Scene::start();
    for mode in [SslMode::Disable, SslMode::Prefer, SslMode::Require] {
        assert_passes(scene.settings("127.0.0.1", mode, None)).await;
    }
    for host in ["localhost", "127.0.0.1"] {
        assert_passes(scene.settings(host, SslMode::VerifyCa, Some("right.pem"))).await;
        let message =
            assert_refused(scene.settings(host, SslMode::VerifyCa, Some("wrong.pem"))).await;
        assert!(message.contains("certificate"), "{message}");
    }
    assert_passes(scene.settings("localhost", SslMode::VerifyFull, Some("right.pem"))).await;
    assert_refused(scene.settings("127.0.0.1", SslMode::VerifyFull, Some("right.pem"))).await;
    assert_refused(scene.settings("localhost", SslMode::VerifyFull, Some("wrong.pem"))).await;
    // As in libpq, a CA that is named is checked.
    assert_refused(scene.settings("localhost", SslMode::Require, Some("wrong.pem"))).await;
    let used = scene.server.psql_as_superuser("SHOW ssl").unwrap();
    assert_eq!(used.trim(), "on");
}

#[tokio::test]
async fn a_server_without_tls_is_refused_where_tls_is_required() {
    let plain = shared::testing::database_settings_from_environment();
    assert_passes(DatabaseSettings {
        sslmode: SslMode::Prefer,
        ..plain.clone()
    })
    .await;
    let message = assert_refused(DatabaseSettings {
        sslmode: SslMode::Require,
        ..plain
    })
    .await;
    assert!(message.contains("does not support TLS"), "{message}");
}

#[test]
fn a_file_that_is_no_certificate_is_named() {
    let plain = shared::testing::database_settings_from_environment();
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    for path in [here, PathBuf::from("/no/such/file")] {
        let settings = DatabaseSettings {
            sslmode: SslMode::VerifyFull,
            sslrootcert: Some(path.clone()),
            ..plain.clone()
        };
        let message = format!("{:#}", db::tls_connector(&settings).err().unwrap());
        assert!(
            message.starts_with("DB_SSLROOTCERT: ") && message.contains(path.to_str().unwrap()),
            "{message}"
        );
    }
}
