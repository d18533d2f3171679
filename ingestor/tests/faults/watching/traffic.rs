//! Producers that send orders, and clients that read them, while everything else happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use shared::testing::OrderGenerator;

use crate::support::Scene;

/// The rules speak of more than a thousand records that wait. At this rate they are there after ten seconds.
const ORDERS_PER_TURN: usize = 20;
const TURN: Duration = Duration::from_millis(100);

/// Traffic that ends when it is dropped. Failures do not matter to it.
pub struct Traffic {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Starts sending orders to the topic of a scene, and reading some of them from an api.
    pub fn start(scene: &Scene, api_port: u16) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", scene.brokers())
            .create()
            .unwrap();
        let newest = "2026-02-01T00:00:00Z".parse().unwrap();
        let mut generator = OrderGenerator::new(11, newest);
        let topic = scene.topic.clone();
        let (uid_tx, uid_rx) = std::sync::mpsc::channel::<String>();
        let sending = turns(&is_over, move || {
            for _ in 0..ORDERS_PER_TURN {
                let order = generator.next_order();
                let payload = serde_json::to_vec(&order).unwrap();
                let key = order.order_uid.as_str();
                // A full queue of the producer drops the order.
                producer
                    .send(BaseRecord::to(&topic).key(key).payload(&payload))
                    .ok();
                uid_tx.send(key.to_owned()).ok();
            }
            producer.poll(Duration::ZERO);
            producer.flush(Duration::from_millis(1)).ok();
        });
        let reading = turns(&is_over, move || {
            for uid in uid_rx.try_iter().take(5) {
                // The second read is answered by the cache.
                get(api_port, &format!("/order/{uid}"));
                get(api_port, &format!("/order/{uid}"));
            }
            get(api_port, "/api/v1/orders?limit=2");
        });
        Self {
            is_over,
            threads: vec![sending, reading],
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

fn turns(is_over: &Arc<AtomicBool>, mut turn: impl FnMut() + Send + 'static) -> JoinHandle<()> {
    let is_over = Arc::clone(is_over);
    std::thread::spawn(move || {
        while !is_over.load(Ordering::Relaxed) {
            turn();
            std::thread::sleep(TURN);
        }
    })
}

fn get(port: u16, path: &str) {
    let request = minreq::get(format!("http://127.0.0.1:{port}{path}"));
    request.with_timeout(12).send().ok();
}
