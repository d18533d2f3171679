//! `ingestor import`.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use shared::db;
use shared::order::Decoder;
use shared::throttle::Throttle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::orders_file::{self, Place};
use crate::config::{APPLICATION_NAME, ImportArgs, Settings};
use crate::import::{Import, Plan, Tally};
use crate::record::{Offset, Refusal};

/// How often the progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// How many bytes are read at once.
const CHUNK_BYTES: usize = 64 * 1024;

pub(super) async fn import(settings: Settings, arguments: ImportArgs) -> anyhow::Result<()> {
    shared::telemetry::init(&settings.log)?;
    db::check(&settings.database, APPLICATION_NAME).await?;
    // Until here and while the file is hashed, a signal ends the process at once: nothing was stored.
    let ImportArgs { file, replace } = arguments;
    let path = file.clone();
    let (input, hash) = tokio::task::spawn_blocking(move || prepare(&path))
        .await
        .context("reading the file panicked")??;
    let shutdown = shared::shutdown::on_signal()?;
    let job = move || {
        super::operator_connection(&settings)?;
        let plan = Plan {
            group_id: settings.kafka.group_id.clone(),
            hash,
            replaces: replace,
            max_orders: settings.batch.max_records,
            max_bytes: settings.memory.batch_bytes(),
        };
        run(&settings, plan, input, shutdown).context(orders_file::name_of(&file))
    };
    tokio::task::spawn_blocking(job)
        .await
        .context("the import panicked")?
}

/// Opens the file and hashes it. What can be read only once, such as a pipe, goes through a temporary file.
fn prepare(file: &Path) -> anyhow::Result<(File, String)> {
    if orders_file::is_standard_input(file) {
        return spool(&mut io::stdin().lock());
    }
    let mut opened = orders_file::open(file)?;
    if !opened.metadata()?.is_file() {
        return spool(&mut opened);
    }
    let hash = copy_and_hash(&mut opened, &mut io::sink())
        .with_context(|| format!("cannot read {}", file.display()))?;
    opened.rewind()?;
    Ok((opened, hash))
}

/// Copies the input to a temporary file, which only this process can read and which ends with it.
fn spool(input: &mut dyn Read) -> anyhow::Result<(File, String)> {
    let folder = std::env::temp_dir();
    let path = folder.join(format!("ingestor-import-{}", Uuid::new_v4()));
    let remedy = || {
        format!(
            "cannot copy the input to a temporary file in {}; TMPDIR names another folder, which needs room for all of the input",
            folder.display()
        )
    };
    let mut copy = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(remedy)?;
    fs::remove_file(&path).with_context(remedy)?;
    let hash = copy_and_hash(input, &mut copy).with_context(remedy)?;
    copy.rewind()?;
    Ok((copy, hash))
}

/// Returns the SHA-256 in hexadecimal.
fn copy_and_hash(input: &mut dyn Read, output: &mut dyn Write) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let length = match input.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&chunk[..length]);
        output.write_all(&chunk[..length])?;
    }
    let hash = hasher.finalize();
    Ok(hash.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn run(
    settings: &Settings,
    plan: Plan,
    input: File,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let import = Import::start(plan, settings.database.clone(), shutdown)?;
    let mut session = Session {
        decoder: settings.decoder,
        import,
        places: VecDeque::new(),
        orders: 0,
        refused: 0,
        before: 0,
        progress: Throttle::every(PROGRESS_INTERVAL),
    };
    if session.import.start_index() > Offset(0) {
        eprintln!(
            "continuing at order {}, counted from 0",
            session.import.start_index()
        );
    }
    let mut input = BufReader::with_capacity(CHUNK_BYTES, input);
    orders_file::for_each_order(&mut input, |place, bytes| session.add(place, bytes))?;
    session.finish()
}

/// An import and what is printed about it.
struct Session {
    decoder: Decoder,
    import: Import,
    /// Where the orders stand that are not stored yet.
    places: VecDeque<(Offset, Place)>,
    /// Orders that were read.
    orders: i64,
    refused: usize,
    /// Valid orders that an earlier run has dealt with.
    before: usize,
    progress: Throttle,
}

impl Session {
    fn add(&mut self, place: Place, bytes: &[u8]) -> anyhow::Result<()> {
        let index = Offset(self.orders);
        self.orders += 1;
        let is_new = index >= self.import.start_index();
        match self.decoder.decode(bytes) {
            Ok(_) if !is_new => self.before += 1,
            Ok(order) => {
                self.places.push_back((index, place));
                let rejected = self.import.push(index, order, bytes)?;
                self.report(rejected)?;
            }
            Err(error) => {
                self.refuse(place, &error.into())?;
                if is_new {
                    self.import.pass_over(index)?;
                }
            }
        }
        // It is due at once, when there is nothing to tell yet.
        if self.progress.is_due() && self.orders > 1 {
            eprintln!("{} orders read, {}", self.orders, self.counts());
        }
        Ok(())
    }

    fn refuse(&mut self, place: Place, refusal: &Refusal) -> io::Result<()> {
        self.refused += 1;
        let reason = <&str>::from(refusal.reason);
        writeln!(
            io::stdout(),
            "{place}: refused: {reason}: {}",
            refusal.detail
        )
    }

    /// Reports what the database has rejected of a batch that is stored.
    fn report(&mut self, rejected: Vec<(Offset, Refusal)>) -> io::Result<()> {
        for (offset, refusal) in rejected {
            while let Some((index, place)) = self.places.pop_front() {
                if index == offset {
                    self.refuse(place, &refusal)?;
                    break;
                }
            }
        }
        Ok(())
    }

    fn counts(&self) -> String {
        let Tally {
            stored,
            kept,
            left_out,
        } = self.import.tally();
        let (before, refused) = (self.before, self.refused);
        format!(
            "stored: {stored}, kept: {kept}, deleted or erased: {left_out}, refused: {refused}, imported before: {before}"
        )
    }

    fn finish(mut self) -> anyhow::Result<()> {
        let orders = usize::try_from(self.orders)?;
        // If none is valid, a setting is probably wrong. The same file must then count again.
        if self.refused < orders {
            let rejected = self.import.flush()?;
            self.report(rejected)?;
        }
        let mut output = io::stdout();
        writeln!(output, "orders: {orders}, {}", self.counts())?;
        if self.import.start_index() >= Offset(self.orders) {
            writeln!(output, "this file was imported before: nothing was changed")?;
        }
        if self.refused > 0 {
            bail!(
                "{} of {orders} orders are refused and were passed over: correct them, and import them in a file of their own",
                self.refused
            );
        }
        Ok(())
    }
}
