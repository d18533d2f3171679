//! Readers that send requests to both processes.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::client::{Answer, Client};
use super::{ORDERS, Scene, uid};
use crate::support::coherence::Observation;

/// The number of readers per process.
const READERS: usize = 3;
/// The pause of a reader between two requests. The machine is small, and the faults need its time.
const PAUSE: Duration = Duration::from_millis(2);

pub struct Readers {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<Vec<Observation>>>,
}

impl Readers {
    /// Starts some readers per process, which ask for random orders.
    pub fn start(scene: &Scene) -> Self {
        Self::start_many(scene, READERS * 2, ORDERS, PAUSE)
    }

    /// Starts `count` readers for both processes together, which ask for the first `orders` orders.
    pub fn start_many(scene: &Scene, count: usize, orders: usize, pause: Duration) -> Self {
        let stop = CancellationToken::new();
        let tasks = (0..count)
            .map(|number| {
                let process = number % 2;
                let reader = Reader {
                    process,
                    client: Client::new(scene.programs[process].port),
                    start: scene.started,
                    orders,
                    pause,
                };
                tokio::spawn(reader.run(stop.clone()))
            })
            .collect();
        Self { stop, tasks }
    }

    /// Stops the readers, and returns what they saw.
    pub async fn finish(self) -> Vec<Observation> {
        self.stop.cancel();
        let mut observations = Vec::new();
        for task in self.tasks {
            observations.extend(task.await.unwrap());
        }
        observations
    }
}

struct Reader {
    process: usize,
    client: Client,
    start: Instant,
    orders: usize,
    pause: Duration,
}

impl Reader {
    async fn run(mut self, stop: CancellationToken) -> Vec<Observation> {
        let mut observations = Vec::new();
        while !stop.is_cancelled() {
            let order = fastrand::usize(0..self.orders);
            let started = self.start.elapsed();
            // If there is no answer, or the database gave none, no promise about answers is broken.
            if let Ok(Answer::Order { seen, is_hit }) = self.client.order(&uid(order)).await {
                observations.push(Observation {
                    process: self.process,
                    order,
                    started,
                    ended: self.start.elapsed(),
                    seen,
                    is_hit,
                });
            }
            tokio::time::sleep(self.pause).await;
        }
        observations
    }
}
