//! How much CPU time each program uses while orders stream.

use std::time::Instant;

use servers::proc;
use servers::process::Process;

use crate::benchmarks::ServerOptions;

/// Returns the CPU time in seconds of the process with this id.
type CpuSeconds = fn(u32) -> anyhow::Result<f64>;

/// The programs, and what each had used at the beginning.
pub(super) struct Cores {
    programs: Vec<(String, u32, CpuSeconds, f64)>,
    started_at: Instant,
}

impl Cores {
    /// Begins to count. Servers that are not private are left out.
    pub(super) fn count(options: &ServerOptions, services: &[Process]) -> anyhow::Result<Self> {
        let with_children: CpuSeconds = |pid| proc::family_cpu_seconds(pid, 0);
        let alone: CpuSeconds = proc::cpu_seconds;
        let mut all = vec![
            ("Kafka", options.broker_pid, alone),
            ("PostgreSQL", options.postgres_pid, with_children),
        ];
        all.extend(
            services
                .iter()
                .map(|service| (service.name(), Some(service.pid()), alone)),
        );
        all.push(("benchmark", Some(std::process::id()), alone));
        let programs = all.into_iter().filter_map(|(name, pid, cpu_seconds)| {
            let pid = pid?;
            Some(cpu_seconds(pid).map(|before| (name.to_owned(), pid, cpu_seconds, before)))
        });
        Ok(Self {
            programs: programs.collect::<anyhow::Result<_>>()?,
            started_at: Instant::now(),
        })
    }

    /// Prints the share of one core that each program has used since then.
    pub(super) fn print(&self) -> anyhow::Result<()> {
        let seconds = self.started_at.elapsed().as_secs_f64();
        print!("percent of a core:");
        for (name, pid, cpu_seconds, before) in &self.programs {
            let percent = (cpu_seconds(*pid)? - before) / seconds * 100.0;
            print!(" {name} {percent:.0}");
        }
        println!();
        Ok(())
    }
}
