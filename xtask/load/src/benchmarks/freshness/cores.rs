//! How much CPU time each program uses while orders stream.

use std::time::Instant;

use servers::proc;
use servers::process::Process;

use crate::benchmarks::ServerOptions;

/// A process, or a server with all its children.
enum Program {
    Process(u32),
    Family(u32),
}

impl Program {
    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        match self {
            Self::Process(pid) => proc::cpu_seconds(*pid),
            Self::Family(pid) => proc::family_cpu_seconds(*pid, 0),
        }
    }
}

/// What each program had used at the beginning.
pub(super) struct Cores {
    programs: Vec<(String, Program, f64)>,
    started_at: Instant,
}

impl Cores {
    /// Begins to count. Servers that are not private are left out.
    pub(super) fn count(options: &ServerOptions, services: &[Process]) -> anyhow::Result<Self> {
        let broker = options.broker_pid.map(Program::Process);
        let postgres = options.postgres_pid.map(Program::Family);
        let servers = [("Kafka", broker), ("PostgreSQL", postgres)]
            .into_iter()
            .filter_map(|(name, program)| Some((name.to_owned(), program?)));
        let ours = services.iter().map(|service| {
            let program = Program::Process(service.pid());
            (service.name().to_owned(), program)
        });
        let benchmark = Program::Process(std::process::id());
        let all = servers
            .chain(ours)
            .chain([("benchmark".to_owned(), benchmark)]);
        let programs: anyhow::Result<_> = all
            .map(|(name, program)| {
                let before = program.cpu_seconds()?;
                Ok((name, program, before))
            })
            .collect();
        Ok(Self {
            programs: programs?,
            started_at: Instant::now(),
        })
    }

    /// Prints the share of one core that each program has used since then.
    pub(super) fn print(&self) -> anyhow::Result<()> {
        let seconds = self.started_at.elapsed().as_secs_f64();
        print!("percent of a core:");
        for (name, program, before) in &self.programs {
            let percent = (program.cpu_seconds()? - before) / seconds * 100.0;
            print!(" {name} {percent:.0}");
        }
        println!();
        Ok(())
    }
}
