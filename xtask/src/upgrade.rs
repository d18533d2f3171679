//! `cargo xtask upgrade`: the programs of a former release and those of this clone side by side, on a filled table and under
//! load, as in a rolling upgrade. Nothing may stop.
//!
//! It does what docs/OPERATIONS.md tells operators to do. It takes minutes, because it builds the former release.

mod former;
mod load;
mod release;

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use servers::process::Launch;
use servers::signals::Signal;
use servers::{progress, project};

use crate::cargo::{cargo, target_folder};
use crate::stack::{self, Stack};
use load::Load;
pub(crate) use load::Settled;
use release::Release;

/// The log of the load generator, in the folder of the servers.
const LOG: &str = "upgrade/load.log";
/// Orders that are stored before the upgrade.
const FILLED: u64 = 20_000;
/// Orders that are produced during the upgrade, and how many each second.
const STREAMED: u64 = 12_000;
const STREAM_RATE: u64 = 200;
/// How many orders each side must store beside or after the other one.
const SIDE_BY_SIDE: u64 = 1_000;

/// How long a partition may stand still. Partitions change hands twice, and each time the group waits until all members have
/// sent a heartbeat, which they do every three seconds.
const LONGEST_STOP: Duration = Duration::from_secs(10);
/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long `ingestor migrate` may take. The table has few rows, so all it does is wait for locks.
const MIGRATION_PATIENCE: Duration = Duration::from_secs(60);

/// Each write of an order, so that one that is written twice is seen.
pub(crate) const COUNT_WRITES: &str = "
    CREATE TABLE upgrade_writes (order_uid text NOT NULL);
    CREATE FUNCTION upgrade_count_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO upgrade_writes VALUES (NEW.order_uid);
        RETURN NULL;
    END $$;
    CREATE TRIGGER upgrade_count_write AFTER INSERT OR UPDATE ON orders
        FOR EACH ROW EXECUTE FUNCTION upgrade_count_write();";

/// Runs the upgrade. The argument is a revision of git, or a folder with the programs `ingestor` and `api`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let former = match arguments {
        [] => former::default_revision()?,
        [former] => former.clone(),
        _ => bail!("upgrade takes a revision, or a folder with the programs of a release"),
    };
    let build = || {
        progress::step("building ingestor, api and load");
        cargo("cargo build")
            .args(["build", "-p", "ingestor", "-p", "api", "-p", "load"])
            .run()?;
        former::programs(&former)
    };
    stack::run_trial("upgrade", build, |_, servers, programs| {
        upgrade(servers, Release::new("former", programs, servers)?)
    })
}

fn upgrade(servers: &Stack, mut former: Release) -> Result<()> {
    let mut present = Release::new("present", target_folder(false), servers)?;
    let settled = Settled::new(servers)?;
    former.start(&["run"])?;
    settled.psql(COUNT_WRITES)?;
    load_program(servers, LOG, &["sample"]).run()?;
    produce(servers, LOG, FILLED, 0).run()?;
    // The sample order is a record, too.
    settled.wait_for(FILLED + 1, PATIENCE)?;
    progress::step(&format!("the former release has stored {FILLED} orders"));

    let load = Load::new(former.api_port());
    thread::scope(|scope| {
        let requests = scope.spawn(|| load.send_requests());
        let stops = scope.spawn(|| load.watch_ingestion(&settled));
        let outcome = roll(servers, &settled, &load, &mut former, &mut present);
        load.is_over.store(true, Ordering::Relaxed);
        let requests = requests
            .join()
            .map_err(|_| anyhow::anyhow!("the requests panicked"))?;
        let stop = stops
            .join()
            .map_err(|_| anyhow::anyhow!("the watch panicked"))?;
        outcome?;
        let sent = requests?;
        let stop = stop?;
        present.stop()?;
        ensure!(
            stop <= LONGEST_STOP,
            "a partition stood still for {stop:.1?}, and may for {LONGEST_STOP:?}"
        );
        check_orders(&settled, FILLED + STREAMED)?;
        progress::step(&format!(
            "upgraded: each of {} orders was written once, {sent} requests were answered, a partition stood still for {stop:.1?} \
             at most",
            FILLED + STREAMED
        ));
        Ok(())
    })
}

/// Upgrades under load: migrates, starts the new programs beside the old ones, and stops the old ones.
fn roll(
    servers: &Stack,
    settled: &Settled<'_>,
    load: &Load,
    former: &mut Release,
    present: &mut Release,
) -> Result<()> {
    let mut stream = produce(servers, LOG, STREAMED, STREAM_RATE).spawn()?;
    settled.wait_for_more(SIDE_BY_SIDE, PATIENCE)?;
    load.is_streaming.store(true, Ordering::Relaxed);

    let started = Instant::now();
    present.migrate(MIGRATION_PATIENCE)?;
    progress::step(&format!("migrated in {:.1?}", started.elapsed()));
    settled.wait_for_more(SIDE_BY_SIDE, PATIENCE)?;
    former.check_running()?;

    present.start(&["run", "--no-migrate"])?;
    settled.wait_for_more(SIDE_BY_SIDE, PATIENCE)?;
    former.check_running()?;
    progress::step("both releases run side by side");

    load.send_to(present.api_port())?;
    former.stop()?;
    settled.wait_for_more(SIDE_BY_SIDE, PATIENCE)?;
    present.check_running()?;
    progress::step("the former release is stopped, and the present one goes on");
    stream.check_running().map_err(|error| {
        error.context("the stream of orders was over before the upgrade: this machine is too slow")
    })?;
    load.is_streaming.store(false, Ordering::Relaxed);
    stream.wait(Signal::INT, PATIENCE)?;
    settled.wait_for(FILLED + STREAMED + 1, PATIENCE)
}

/// Checks that so many orders were written, each once. The sample order is left out: the requests replace it.
pub(crate) fn check_orders(settled: &Settled<'_>, expected: u64) -> Result<()> {
    for (what, query) in [
        ("orders", "SELECT count(*) FROM orders"),
        ("writes of orders", "SELECT count(*) FROM upgrade_writes"),
        (
            "orders written",
            "SELECT count(DISTINCT order_uid) FROM upgrade_writes",
        ),
    ] {
        let query = [query, " WHERE order_uid <> '", load::SAMPLE_UID, "'"].concat();
        let found = settled.number(&query)?;
        ensure!(
            found == expected,
            "there are {found} {what} instead of {expected}"
        );
    }
    let letters = settled.number("SELECT count(*) FROM dead_letters")?;
    ensure!(letters == 0, "{letters} orders became dead letters");
    Ok(())
}

/// Prepares a producer of new orders.
pub(crate) fn produce(servers: &Stack, log: &str, count: u64, rate: u64) -> Launch {
    let (count, rate) = (count.to_string(), rate.to_string());
    let only_new = ["produce", "--update-percent", "0"];
    load_program(servers, log, &only_new).args(["--count", &count, "--rate", &rate])
}

/// Prepares a run of the load generator. Its log is in the folder of the servers.
pub(crate) fn load_program(servers: &Stack, log: &str, arguments: &[&str]) -> Launch {
    Launch::new("load", target_folder(false).join("load"))
        .args(arguments)
        .envs(&servers.env())
        .log_to(project::stack_folder().join(log))
}
