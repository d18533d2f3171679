//! Readers of both processes.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::client::{Answer, Client};
use super::{ORDERS, Scene, uid};
use crate::support::coherence::Observation;

/// Readers of each process.
const READERS: usize = 3;
/// Between two questions of a reader: the machine is small, and its time is needed for the faults.
const PAUSE: Duration = Duration::from_millis(2);

pub struct Readers {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<Vec<Observation>>>,
}

impl Readers {
    pub fn start(scene: &Scene) -> Self {
        let stop = CancellationToken::new();
        let tasks = (0..READERS * 2)
            .map(|number| {
                let process = number % 2;
                let port = scene.programs[process].port;
                tokio::spawn(read(process, port, scene.started, stop.clone()))
            })
            .collect();
        Self { stop, tasks }
    }

    /// What they saw.
    pub async fn finish(self) -> Vec<Observation> {
        self.stop.cancel();
        let mut observations = Vec::new();
        for task in self.tasks {
            observations.extend(task.await.unwrap());
        }
        observations
    }
}

async fn read(
    process: usize,
    port: u16,
    start: Instant,
    stop: CancellationToken,
) -> Vec<Observation> {
    let mut client = Client::new(port);
    let mut observations = Vec::new();
    while !stop.is_cancelled() {
        let order = fastrand::usize(0..ORDERS);
        let started = start.elapsed();
        // No answer, or none from the database, breaks no promise about what is answered.
        if let Ok(Answer::Order { seen, is_hit }) = client.order(&uid(order)).await {
            observations.push(Observation {
                process,
                order,
                started,
                ended: start.elapsed(),
                seen,
                is_hit,
            });
        }
        tokio::time::sleep(PAUSE).await;
    }
    observations
}
