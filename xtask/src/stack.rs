//! PostgreSQL and Kafka together, and the environment that makes the project's processes and tests use them.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::kafka::PrivateKafka;
use crate::postgres::{self, PrivatePostgres};
use crate::{progress, project};

/// A folder under `.stack` that one process holds as long as it runs.
#[derive(Debug)]
pub struct StackFolder {
    path: PathBuf,
    /// Held for its lock, which the kernel takes away however the process ends.
    _lock: File,
    removed_at_end: bool,
}

impl StackFolder {
    /// Takes the folder of that name, empty; fails if another process has it.
    pub fn take(name: &str) -> Result<Self> {
        let path = project::stack_folder().join(name);
        let lock = open_lock(&lock_path(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another `{name}` runs in this clone (its servers: .stack/{name}.env)")
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).context("cannot lock the stack's folder");
            }
        }
        remove_stack_folder(&path)?;
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self {
            path,
            _lock: lock,
            removed_at_end: false,
        })
    }

    /// Takes a folder of this process alone, removed at the end; what killed processes left is removed first.
    pub fn take_own(name: &str) -> Result<Self> {
        remove_stale(name);
        let mut folder = Self::take(&format!("{name}-{}", std::process::id()))?;
        folder.removed_at_end = true;
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StackFolder {
    fn drop(&mut self) {
        if self.removed_at_end {
            remove_stack_folder(&self.path).ok();
            fs::remove_file(lock_path(&self.path)).ok();
        }
    }
}

/// Removes the folders of that name whose process has ended.
fn remove_stale(name: &str) {
    let prefix = format!("{name}-");
    for entry in fs::read_dir(project::stack_folder())
        .into_iter()
        .flatten()
        .flatten()
    {
        let file_name = entry.file_name();
        let Some(stem) = file_name
            .to_str()
            .and_then(|file_name| file_name.strip_suffix(".lock"))
        else {
            continue;
        };
        if stem.starts_with(&prefix)
            && let Ok(lock) = open_lock(&entry.path())
            && lock.try_lock().is_ok()
        {
            remove_stack_folder(&entry.path().with_extension("")).ok();
            fs::remove_file(entry.path()).ok();
        }
    }
}

fn remove_stack_folder(path: &Path) -> Result<()> {
    postgres::remove_folder(&path.join("postgres"))?;
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

fn lock_path(folder: &Path) -> PathBuf {
    folder.with_extension("lock")
}

fn open_lock(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// The servers of a run; `None` where the environment names one that is to be used instead.
///
/// Dropped in this order: Kafka, PostgreSQL.
#[derive(Debug)]
pub struct Stack {
    /// The private Kafka.
    pub kafka: Option<PrivateKafka>,
    /// The private PostgreSQL.
    pub postgres: Option<PrivatePostgres>,
}

impl Stack {
    /// Starts what the environment does not name, both at once.
    pub fn start(folder: &Path, durable: bool) -> Result<Self> {
        thread::scope(|scope| {
            let kafka = scope.spawn(|| start_kafka(&folder.join("kafka")));
            let postgres = start_postgres(&folder.join("postgres"), durable);
            let kafka = kafka
                .join()
                .map_err(|_| anyhow!("the start of Kafka panicked"))?;
            Ok(Self {
                kafka: kafka?,
                postgres: postgres?,
            })
        })
    }

    /// The variables that make the project's processes and tests use the private servers.
    pub fn env(&self) -> Vec<(String, String)> {
        let mut variables = Vec::new();
        if let Some(postgres) = &self.postgres {
            variables.extend(postgres.env());
        }
        if let Some(kafka) = &self.kafka {
            variables.extend(kafka.env());
        }
        variables
    }

    /// Fails, with the end of its log, if a server has ended.
    pub fn check_running(&mut self) -> Result<()> {
        if let Some(kafka) = &mut self.kafka {
            kafka.check_running()?;
        }
        if let Some(postgres) = &mut self.postgres {
            postgres.check_running()?;
        }
        Ok(())
    }

    /// Stops both in order, Kafka first.
    pub fn stop(&mut self) -> Result<()> {
        let kafka = self.kafka.as_mut().map_or(Ok(()), PrivateKafka::stop);
        let postgres = self.postgres.as_mut().map_or(Ok(()), PrivatePostgres::stop);
        kafka.and(postgres)
    }
}

fn start_kafka(folder: &Path) -> Result<Option<PrivateKafka>> {
    if let Some(brokers) = variable("KAFKA_BROKERS") {
        progress::step(&format!("Kafka: using KAFKA_BROKERS={brokers}"));
        return Ok(None);
    }
    let start = Instant::now();
    let kafka = PrivateKafka::start(Some(folder))?;
    progress::step(&format!(
        "Apache Kafka is up at {} ({:.1} s)",
        kafka.bootstrap(),
        start.elapsed().as_secs_f32()
    ));
    Ok(Some(kafka))
}

fn start_postgres(folder: &Path, durable: bool) -> Result<Option<PrivatePostgres>> {
    let given = ["DB_HOST", "DB_PORT", "DB_USER", "DB_PASSWORD", "DB_NAME"]
        .into_iter()
        .find(|name| variable(name).is_some());
    if let Some(name) = given {
        progress::step(&format!(
            "PostgreSQL: using the server that the DB_* variables name ({name} is set)"
        ));
        return Ok(None);
    }
    let start = Instant::now();
    let postgres = PrivatePostgres::start(&postgres::Options {
        folder: Some(folder.to_owned()),
        durable,
        ..postgres::Options::default()
    })?;
    progress::step(&format!(
        "PostgreSQL is up at {}:{} ({:.1} s)",
        postgres.host(),
        postgres.port(),
        start.elapsed().as_secs_f32()
    ));
    Ok(Some(postgres))
}

/// A variable of the environment that is set to something.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Renders variables as lines that a shell can `source`.
pub fn render_exports(variables: &[(String, String)]) -> String {
    variables
        .iter()
        .map(|(name, value)| format!("export {name}='{}'\n", value.replace('\'', r"'\''")))
        .collect()
}

/// `cargo xtask stack`: starts both servers, writes `.stack/dev.env`, and stays until a signal comes.
pub fn run() -> Result<()> {
    let folder = StackFolder::take("dev")?;
    let mut stack = Stack::start(folder.path(), false)?;
    let exports = render_exports(&stack.env());
    let file = env_file("dev");
    fs::write(&file, &exports).with_context(|| format!("cannot write {}", file.display()))?;
    progress::say(&format!(
        "\n{exports}\nThe same lines are in {}:\n    source .stack/dev.env && cargo test -p shared\n\
         Ctrl-C stops both servers; nothing is kept.",
        file.display()
    ));
    let ended = stay(&mut stack);
    fs::remove_file(&file).ok();
    stack.stop()?;
    ended
}

/// The file that names the servers of a running `demo` or `dev` stack.
pub fn env_file(name: &str) -> PathBuf {
    project::stack_folder().join(format!("{name}.env"))
}

fn stay(stack: &mut Stack) -> Result<()> {
    loop {
        stack.check_running()?;
        crate::interrupt::check()?;
        thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_survive_a_quote() {
        let variables = [("DB_PASSWORD".to_owned(), "it's".to_owned())];
        assert_eq!(
            render_exports(&variables),
            "export DB_PASSWORD='it'\\''s'\n"
        );
    }
}
