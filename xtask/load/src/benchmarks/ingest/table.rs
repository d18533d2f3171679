//! The figures of each side and round, and how they are printed.

use super::server::Counters;
use crate::benchmarks::median;

/// What one side has done in one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measurement {
    pub orders: usize,
    pub seconds: f64,
    /// Of the ingestor, or of the threads that copy.
    pub client_cpu_seconds: f64,
    /// Of the ingestor, in MiB.
    pub peak_mib: Option<f64>,
    pub servers: Counters,
}

impl Measurement {
    pub(super) fn orders_per_second(self) -> f64 {
        self.orders as f64 / self.seconds
    }

    /// Returns the columns that follow the ratio, in their order.
    fn columns(self) -> [Option<f64>; 6] {
        let orders = self.orders as f64;
        let microseconds = |seconds: f64| seconds * 1e6 / orders;
        let in_a_thousand = |count: f64| count * 1e3 / orders;
        [
            Some(microseconds(self.client_cpu_seconds)),
            self.servers.postgres_cpu_seconds.map(microseconds),
            self.servers.broker_cpu_seconds.map(microseconds),
            self.peak_mib,
            self.servers.statements.map(in_a_thousand),
            self.servers.commits.map(in_a_thousand),
        ]
    }
}

/// The rows of one case.
#[derive(Debug)]
pub(super) struct Table {
    rival: &'static str,
    rounds: Vec<[Measurement; 2]>,
}

impl Table {
    /// Prints the title and the heads of the columns.
    pub(super) fn begin(title: &str, rival: &'static str) -> Self {
        println!("\n{title}");
        println!(
            "                              CPU us an order             peak  a thousand orders"
        );
        println!(
            " round side  orders/s  ratio  client  PostgreSQL  broker   MiB  statements  commits"
        );
        Self {
            rival,
            rounds: Vec::new(),
        }
    }

    /// Adds a round and prints it.
    pub(super) fn add(&mut self, rival: Measurement, drain: Measurement) {
        self.rounds.push([rival, drain]);
        let round = self.rounds.len().to_string();
        let ratio = drain.orders_per_second() / rival.orders_per_second();
        print_line(
            &round,
            self.rival,
            rival.orders_per_second(),
            None,
            rival.columns(),
        );
        print_line(
            &round,
            "drain",
            drain.orders_per_second(),
            Some(ratio),
            drain.columns(),
        );
    }

    /// Prints the median of each column, if there is more than one round.
    pub(super) fn end(&self) {
        if self.rounds.len() < 2 {
            return;
        }
        let median_of = |value: &dyn Fn(&[Measurement; 2]) -> Option<f64>| {
            let values: Option<Vec<f64>> = self.rounds.iter().map(value).collect();
            values.map(|mut values| median(&mut values))
        };
        for (side, name) in [self.rival, "drain"].into_iter().enumerate() {
            let rate = median_of(&|round| Some(round[side].orders_per_second()));
            let ratio = median_of(&|[rival, drain]| {
                (side == 1).then(|| drain.orders_per_second() / rival.orders_per_second())
            });
            let columns =
                std::array::from_fn(|column| median_of(&|round| round[side].columns()[column]));
            print_line("median", name, rate.unwrap_or(f64::NAN), ratio, columns);
        }
    }
}

fn print_line(round: &str, side: &str, rate: f64, ratio: Option<f64>, columns: [Option<f64>; 6]) {
    let text = |value: Option<f64>, decimals: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
    };
    let [client, postgres, broker, peak, statements, commits] = columns;
    println!(
        "{round:>6} {side:<5} {rate:>8.0}  {:>5}  {:>6}  {:>10}  {:>6}  {:>4}  {:>10}  {:>7}",
        text(ratio, 2),
        text(client, 1),
        text(postgres, 1),
        text(broker, 1),
        text(peak, 0),
        text(statements, 1),
        text(commits, 2),
    );
}
