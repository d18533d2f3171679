//! How percentiles are printed.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::rival::Heard;
use super::watcher::Sighting;
use crate::benchmarks::times::Times;

impl Times {
    /// Prints a line without its end.
    fn print(&self, name: &str) {
        let shown = [50, 99, 100].map(|percent| self.percentile(percent));
        let [p50, p99, max] = shown;
        print!(
            "{name:<28} {:>7} {p50:>8.2} {p99:>8.2} {max:>8.2}",
            self.len()
        );
    }

    fn print_beside(&self, name: &str, rival: &Self) {
        self.print(name);
        let ratio = |percent| self.percentile(percent) / rival.percentile(percent);
        println!("   {:>5.2} {:>5.2}", ratio(50), ratio(99));
    }
}

/// Prints a stage, and its floor in the same line.
pub(super) fn print_stage(name: &str, times: &Times, floor: Option<&Times>) {
    times.print(name);
    match floor {
        Some(floor) => println!(
            " {:>8.2} {:>8.2}",
            floor.percentile(50),
            floor.percentile(99)
        ),
        None => println!(" {:>8} {:>8}", "-", "-"),
    }
}

/// Prints the heads of the columns.
pub(super) fn print_head() {
    println!("                                             milliseconds          to LISTEN");
    println!("                             samples      p50      p99      max     p50   p99");
}

/// Prints one kind of change: the rival and each api. Times count from the change.
pub(super) fn print_kind(
    name: &str,
    sightings: &[Vec<Sighting>],
    heard: &Heard,
) -> anyhow::Result<()> {
    println!("{name}");
    let all = sightings.first().map_or(&[][..], Vec::as_slice);
    let notified: Vec<Duration> = all
        .iter()
        .filter_map(|sighting| {
            let at = heard.first(&sighting.uid, sighting.begun_at)?;
            Some(since(at, sighting.start))
        })
        .collect();
    ensure!(
        notified.len() == all.len(),
        "{name}: {} of {} changes were not notified",
        all.len() - notified.len(),
        all.len()
    );
    let rival = Times::new(notified.into_iter());
    rival.print("  bare LISTEN, notified");
    println!();
    for (index, sightings) in sightings.iter().enumerate() {
        let seen = sightings
            .iter()
            .map(|sighting| since(sighting.seen_at, sighting.start));
        Times::new(seen).print_beside(&format!("  api {}, answered", index + 1), &rival);
    }
    let gaps = sightings.iter().flatten();
    let gaps = Times::new(gaps.map(|sighting| since(sighting.seen_at, sighting.unseen_at)));
    gaps.print("  resolution of the api's");
    println!();
    Ok(())
}

/// Returns 0 if a notification is faster than the answer to COMMIT.
fn since(at: Instant, start: Instant) -> Duration {
    at.saturating_duration_since(start)
}
