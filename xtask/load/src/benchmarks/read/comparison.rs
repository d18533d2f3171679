//! Several sides that are measured in turn, and their table.

use super::http::Load;
use crate::benchmarks::{median, print_load_average};

/// One side: its name, and what measures it.
pub(super) type Side<'a> = (&'a str, &'a dyn Fn() -> anyhow::Result<Load>);

/// What all sides have measured, by round.
pub(super) struct Comparison<const N: usize>(Vec<[Load; N]>);

impl<const N: usize> Comparison<N> {
    /// Measures all sides in each round and prints a table.
    ///
    /// The order changes with every round, so that no side always finds what the one before it has left.
    pub(super) fn run(rounds: usize, sides: [Side<'_>; N]) -> anyhow::Result<Self> {
        print_load_average();
        print!("round");
        for (name, _) in sides {
            print!(" {:>15} p50 ms  p99 ms", format!("{name}/s"));
        }
        println!();
        let mut table = Vec::new();
        for round in 1..=rounds {
            let mut loads = [None; N];
            for turn in 0..N {
                let side = if round % 2 == 1 { turn } else { N - 1 - turn };
                loads[side] = Some(sides[side].1()?);
            }
            print!("{round:>5}");
            for load in loads.into_iter().flatten() {
                print!(
                    " {:>15.0} {:>6.2} {:>7.2}",
                    load.per_second, load.p50_ms, load.p99_ms
                );
            }
            println!();
            table.push(loads.map(|load| load.expect("each side had its turn")));
        }
        print_load_average();
        Ok(Self(table))
    }

    /// Returns the median of a ratio over the rounds.
    pub(super) fn median(&self, ratio: impl Fn(&[Load; N]) -> f64) -> f64 {
        median(&mut self.0.iter().map(ratio).collect::<Vec<_>>())
    }
}
