//! A sick PostgreSQL. Whatever is wrong with it, no good order becomes a dead letter, and each is stored once. The ingestor
//! recovers by itself, and while it waits it takes hardly any processor time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use servers::postgres::{Account, Options, PrivatePostgres};
use shared::order::Order;
use shared::testing::{TestDatabase, settings_of, wait_until};

use crate::support::{Daemon, PATIENCE, Scene, Watch};

/// How long a waiting daemon is watched.
const WATCH: Duration = Duration::from_secs(3);

/// A daemon at work.
struct Patient {
    scene: Scene,
    daemon: Daemon,
    orders: Vec<Order>,
}

impl Patient {
    fn new(database: TestDatabase) -> Self {
        let mut scene = Scene::with_database(2, database);
        scene.audit_writes();
        let daemon = scene.start_daemon_with(&[("BATCH_MAX_RECORDS", "50")]);
        let orders = scene.produce_orders(500);
        scene.wait_until_settled(500);
        Self {
            scene,
            daemon,
            orders,
        }
    }

    fn send(&mut self, count: usize) {
        self.orders.extend(self.scene.produce_orders(count));
    }

    /// Waits until the daemon reports trouble, and asserts that it waits calmly.
    fn assert_waits_calmly(&self) {
        wait_until("the daemon is in trouble", PATIENCE, || {
            self.daemon
                .get("/readyz")
                .is_some_and(|(status, _)| status == 503)
        });
        let watch = Watch::start(&self.daemon);
        std::thread::sleep(WATCH);
        watch.assert_calm();
        assert!(self.daemon.metric("orders_ingestor_retries_total") > 0.0);
    }

    /// Asserts that everything is stored once, that the daemon is well, and that it never left its group.
    fn assert_recovers(self) {
        let records = i64::try_from(self.orders.len()).unwrap();
        self.scene.wait_until_settled(records);
        self.scene.assert_each_stored_once(&self.orders);
        wait_until("the daemon is well", PATIENCE, || {
            self.daemon
                .get("/readyz")
                .is_some_and(|(status, _)| status == 200)
        });
        let log = self.daemon.log();
        assert!(!log.contains("revoked"), "{log}");
        assert!(self.daemon.stop().success());
    }
}

/// Ends the ingestor's sessions, from any database of the server.
fn end_sessions(scene: &Scene) -> String {
    format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE datname = '{}' AND application_name = 'orders-ingestor'",
        scene.database.settings().name
    )
}

#[test]
fn stops_of_both_kinds() {
    let mut server = PrivatePostgres::start(&Options::default()).unwrap();
    let mut patient = Patient::new(TestDatabase::create_on(settings_of(&server)));

    patient.send(1_000);
    server.stop().unwrap();
    patient.send(1_000);
    patient.assert_waits_calmly();
    server.restart().unwrap();
    patient.send(1_000);
    server.stop_immediately().unwrap();
    patient.send(1_000);
    patient.assert_waits_calmly();
    server.restart().unwrap();

    patient.assert_recovers();
}

#[test]
fn a_password_that_is_changed() {
    let server = PrivatePostgres::start(&Options::default()).unwrap();
    let mut patient = Patient::new(TestDatabase::create_on(settings_of(&server)));
    let run = |statement: &str| drop(server.psql_as_superuser(statement).unwrap());
    let user = "orders_ingestor";
    run(&format!("ALTER ROLE {user} PASSWORD 'another'"));
    run(&end_sessions(&patient.scene));
    patient.send(100);
    patient.assert_waits_calmly();
    run(&format!(
        "ALTER ROLE {user} PASSWORD '{}'",
        server.password()
    ));
    patient.assert_recovers();
}

#[test]
fn a_full_disk() {
    let server = PrivatePostgres::start(&Options::default()).unwrap();
    let disk = SmallDisk::mount("16m");
    let database = TestDatabase::create_on(settings_of(&server));
    let name = database.settings().name;
    let folder = disk.path().display();
    server
        .psql_as_superuser(&format!("CREATE TABLESPACE small LOCATION '{folder}'"))
        .unwrap();
    server
        .psql_as_superuser(&format!("ALTER DATABASE {name} SET TABLESPACE small"))
        .unwrap();
    let mut patient = Patient::new(database);

    patient.send(15_000);
    patient.assert_waits_calmly();
    // What follows differs: "No space left on device", or "wrote only 4096 of 8192 bytes" if half a page has fitted.
    assert!(patient.daemon.log().contains("could not extend file"));
    disk.resize("128m");
    patient.assert_recovers();
    drop(server);
}

#[test]
fn a_database_that_is_read_only() {
    let mut patient = Patient::new(TestDatabase::create());
    let set_read_only = |database: &TestDatabase, value: &str| {
        let name = database.settings().name;
        database.execute(&format!(
            "BEGIN READ WRITE; ALTER DATABASE {name} SET default_transaction_read_only = {value}; COMMIT"
        ));
    };
    set_read_only(&patient.scene.database, "on");
    patient
        .scene
        .database
        .execute(&end_sessions(&patient.scene));
    patient.send(1_000);
    patient.assert_waits_calmly();
    set_read_only(&patient.scene.database, "off");
    patient.assert_recovers();
}

#[test]
fn a_table_that_is_locked() {
    let mut patient = Patient::new(TestDatabase::create());
    let mut holder = patient.scene.database.connect();
    holder
        .batch_execute("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        .unwrap();
    patient.send(5_000);
    patient.scene.wait_until_a_lock_is_awaited();
    let watch = Watch::start(&patient.daemon);
    std::thread::sleep(Duration::from_secs(8));
    watch.assert_calm();
    holder.batch_execute("COMMIT").unwrap();
    patient.assert_recovers();
}

#[test]
fn a_deadlock_of_which_the_ingestor_is_the_victim() {
    let mut patient = Patient::new(TestDatabase::create());
    let mut uids: Vec<String> = patient.orders[..2]
        .iter()
        .map(|order| order.order_uid.to_string())
        .collect();
    uids.sort();
    let lock = |uid: &str| format!("SELECT FROM orders WHERE order_uid = '{uid}' FOR UPDATE");
    let (mut victims, mut sent) = (0, 0);
    while victims < 3 {
        let mut other = patient.scene.database.connect();
        other.batch_execute("BEGIN").unwrap();
        other.batch_execute(&lock(&uids[1])).unwrap();
        // Both are in one partition and one batch: the ingestor locks the first and waits for the second.
        let later: Vec<Order> = uids.iter().map(|uid| patient.scene.later(uid)).collect();
        for order in &later {
            let message = serde_json::to_vec(order).unwrap();
            patient.scene.send(Some("one key"), Some(&message));
        }
        sent += 2;
        patient.scene.flush();
        patient.scene.wait_until_a_lock_is_awaited();
        // A session that has waited for a second looks once for a deadlock, and becomes its victim. That is the ingestor,
        // which has waited longer, unless the machine was so busy that its second was over before.
        if other.batch_execute(&lock(&uids[0])).is_ok() {
            victims += 1;
            wait_until("the ingestor is the victim", PATIENCE, || {
                patient.daemon.metric("orders_ingestor_retries_total") >= f64::from(victims)
            });
        }
        drop(other);
        patient.scene.wait_until_settled(500 + sent);
    }
    wait_until("the server has counted the deadlocks", PATIENCE, || {
        patient.scene.database.integer(
            "SELECT deadlocks AS value FROM pg_stat_database WHERE datname = current_database()",
        ) >= 3
    });
    assert_eq!(
        (patient.scene.stored(), patient.scene.dead_letters()),
        (500, 0)
    );
    assert!(patient.daemon.stop().success());
}

#[test]
fn a_server_that_accepts_no_more_connections() {
    let outside = TestDatabase::create();
    let mut patient = Patient::new(TestDatabase::create());
    let name = patient.scene.database.settings().name;
    let set_limit =
        |limit: i32| outside.execute(&format!("ALTER DATABASE {name} CONNECTION LIMIT {limit}"));
    set_limit(0);
    outside.execute(&end_sessions(&patient.scene));
    patient.send(1_000);
    patient.assert_waits_calmly();
    // A process that starts now waits, too.
    let late = patient.scene.start_daemon();
    late.wait_until_logged("too many connections");
    drop(late);
    set_limit(-1);
    patient.assert_recovers();
}

#[test]
fn sessions_that_are_ended_again_and_again() {
    let mut patient = Patient::new(TestDatabase::create());
    for _ in 0..20 {
        let before = patient.scene.settled();
        patient.send(200);
        patient
            .scene
            .database
            .execute(&end_sessions(&patient.scene));
        wait_until("the daemon continues", PATIENCE, || {
            patient.scene.settled() > before
        });
    }
    patient.assert_recovers();
}

#[test]
fn a_schema_that_does_not_fit() {
    let mut patient = Patient::new(TestDatabase::create());
    let rename = |database: &TestDatabase, from: &str, to: &str| {
        database.execute(&format!("ALTER TABLE orders RENAME COLUMN {from} TO {to}"));
    };
    rename(&patient.scene.database, "sm_id", "renamed");
    patient.send(1_000);
    patient.assert_waits_calmly();
    assert!(patient.daemon.log().contains("sm_id"));
    rename(&patient.scene.database, "renamed", "sm_id");
    patient.assert_recovers();
}

/// A file system in memory that can be filled up.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one that PostgreSQL may use. `mount` interprets the size.
    fn mount(size: &str) -> Self {
        let account = Account::for_postgres()
            .unwrap()
            .expect("a disk is mounted: run this test as root");
        let path = std::env::temp_dir().join(format!("small-disk-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path).unwrap();
        let disk = Self { path };
        let owner = account.ids();
        disk.run_mount(&format!(
            "size={size},mode=0700,uid={},gid={}",
            owner.0, owner.1
        ));
        disk
    }

    fn resize(&self, size: &str) {
        self.run_mount(&format!("remount,size={size}"));
    }

    fn run_mount(&self, options: &str) {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "small-disk"])
            .arg(&self.path)
            .output()
            .unwrap();
        assert!(
            mounted.status.success(),
            "this test mounts a small disk and may not: run it as root, in a container with CAP_SYS_ADMIN: {}",
            String::from_utf8_lossy(&mounted.stderr)
        );
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Unmounted lazily, because a server that has not ended yet holds files on it.
        Command::new("umount")
            .arg("-l")
            .arg(&self.path)
            .status()
            .ok();
        std::fs::remove_dir(&self.path).ok();
    }
}
