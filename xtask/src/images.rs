//! `cargo xtask images`: builds the images of the Dockerfile with a private Docker engine, and runs them as docker-compose.yaml
//! says.
//!
//! Nothing is pulled. Debian's base image is made from Debian's packages, and the images of Rust, PostgreSQL, Kafka and Prometheus
//! have stand-ins, under their names and with their variables (`xtask/stand-ins`).

mod bases;
mod build;
mod engine;
mod system;
mod trial;
mod watching;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use servers::{interrupt, progress};

use crate::arguments::{take_flag, take_text};
use crate::packages::{self, Purpose};
use engine::Engine;

/// How the images are made.
#[derive(Debug)]
struct Options {
    /// The folder of programs that are built already; `None` builds them as the Dockerfile says, which takes about 15 minutes on
    /// two cores.
    programs: Option<PathBuf>,
    /// Whether a machine without a Docker engine is no failure.
    if_possible: bool,
}

impl Options {
    fn new(arguments: &[String]) -> Result<Self> {
        let mut arguments = arguments.to_vec();
        let programs = take_text(&mut arguments, "--programs")?;
        let options = Self {
            if_possible: take_flag(&mut arguments, "--if-possible"),
            programs: programs
                .map(|folder| {
                    std::path::absolute(&folder).with_context(|| format!("cannot find {folder}"))
                })
                .transpose()?,
        };
        if let Some(unknown) = arguments.first() {
            bail!(
                "images has no option {unknown}; its options are --programs FOLDER and --if-possible"
            );
        }
        Ok(options)
    }
}

/// Builds the images and runs them.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let options = Options::new(arguments)?;
    if let Some(folder) = &options.programs {
        for program in build::PROGRAMS {
            ensure!(
                folder.join(program).is_file(),
                "{} has no program {program}: build it, or leave --programs out",
                folder.display()
            );
        }
    }
    let mut engine = match start_engine() {
        Ok(engine) => engine,
        Err(error) if options.if_possible && interrupt::check().is_ok() => {
            progress::say(&format!(
                "*** NOT RUN: the images were neither built nor run, because this machine has no Docker engine: {error:#}"
            ));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let outcome = try_images(&engine, &options);
    if outcome.is_err() {
        progress::say(&format!("the logs are in {}", engine.logs().display()));
    }
    outcome.and(engine.stop())
}

/// Installs and starts an engine.
fn start_engine() -> Result<Engine> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "only root can start one"
    );
    packages::ensure(&[Purpose::Images, Purpose::Kafka])?;
    Engine::start()
}

fn try_images(engine: &Engine, options: &Options) -> Result<()> {
    bases::make_debian(engine)?;
    build::build(engine, options.programs.as_deref())?;
    for program in build::PROGRAMS {
        build::check_content(engine, program, options.programs.is_none())?;
    }
    let system = system::System::new(engine)?;
    bases::make_servers(engine, system.model())?;
    trial::run(&system)
}
