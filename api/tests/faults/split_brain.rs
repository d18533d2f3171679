//! Two servers take writes for a minute. New connections of the api reach one of them, and its old connections stay on the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use shared::testing::eventually;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::scene::LEASE;
use crate::support::PATIENCE;
use crate::support::program::Program;
use crate::support::split::{Server, Split, UIDS, city};

/// For how long both servers take writes after the switch.
const BOTH_WRITABLE: Duration = Duration::from_secs(60);
/// How soon listener and pool must have met on the new server.
const MET_WITHIN: Duration = Duration::from_secs(10);
/// The pause of a writer between two writes, and of a reader between two requests.
const PAUSE: Duration = Duration::from_millis(10);
const READERS: usize = 3;

/// A write: the order, its number in this order, and when it was acknowledged.
type Written = (usize, u64, Instant);

/// What a reader has seen of an order, and when it asked.
struct Seen {
    order: usize,
    asked: Instant,
    server: Server,
    number: u64,
    is_hit: bool,
}

/// Writes numbers into the orders of a server, one after another.
fn write_to(split: &Split, server: Server, stop: &CancellationToken) -> JoinHandle<Vec<Written>> {
    let (mut session, stop) = (split.connect(server), stop.clone());
    tokio::task::spawn_blocking(move || {
        session.batch_execute("SET orders.emits = 'off'").unwrap();
        let mut written = Vec::new();
        for number in 1.. {
            for (order, uid) in UIDS.iter().enumerate() {
                if stop.is_cancelled() {
                    return written;
                }
                let write = format!(
                    "UPDATE orders SET delivery_city = '{server:?} {number}' WHERE order_uid = '{uid}'"
                );
                session.batch_execute(&write).unwrap();
                written.push((order, number, Instant::now()));
                std::thread::sleep(PAUSE);
            }
        }
        written
    })
}

async fn read(program: Arc<Program>, stop: CancellationToken) -> Vec<Seen> {
    let mut seen = Vec::new();
    while !stop.is_cancelled() {
        let order = next_order();
        let asked = Instant::now();
        let answer = program.get(&format!("/order/{}", UIDS[order])).await;
        if let Some((city, is_hit)) = city(&answer)
            && let Some((server, number)) = city.split_once(' ')
        {
            seen.push(Seen {
                order,
                asked,
                server: if server == "Former" {
                    Server::Former
                } else {
                    Server::Promoted
                },
                number: number.parse().unwrap(),
                is_hit,
            });
        }
        tokio::time::sleep(PAUSE).await;
    }
    seen
}

/// An order that differs from one request to the next.
fn next_order() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed) % UIDS.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn former_primary_that_takes_writes_for_a_minute_is_never_mixed_with_the_new_one() {
    let split = Split::start().await;
    let port = split.link.port().to_string();
    let program = Program::start(&split.database, &[("DB_PORT", &port)]).await;
    program.wait_until_logged("listener is live").await;
    let program = Arc::new(program);
    let stop = CancellationToken::new();
    let former = write_to(&split, Server::Former, &stop);
    let promoted = write_to(&split, Server::Promoted, &stop);
    let readers: Vec<_> = (0..READERS)
        .map(|_| tokio::spawn(read(Arc::clone(&program), stop.clone())))
        .collect();
    tokio::time::sleep(Duration::from_secs(5)).await;

    split.route(Server::Promoted, Server::Promoted);
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Until a connection ends, nothing tells the api of the other server.
    split.end_pool(Server::Former);
    let switched = Instant::now();
    tokio::time::sleep(BOTH_WRITABLE).await;
    stop.cancel();
    let (former, promoted) = (former.await.unwrap(), promoted.await.unwrap());
    let mut seen = Vec::new();
    for reader in readers {
        seen.extend(reader.await.unwrap());
    }
    eventually("the cache equals the server", PATIENCE, async || {
        let (order, number, _) = *promoted.last().unwrap();
        let answer = program.get(&format!("/order/{}", UIDS[order])).await;
        city(&answer) == Some((format!("Promoted {number}"), true))
    })
    .await;

    let hits: Vec<&Seen> = seen.iter().filter(|seen| seen.is_hit).collect();
    let first_new = hits.iter().filter(|hit| hit.server == Server::Promoted);
    let first_new = first_new.map(|hit| hit.asked).min().unwrap();
    println!(
        "{} answers, {} hits, the first of the new server after {:?}",
        seen.len(),
        hits.len(),
        first_new.saturating_duration_since(switched)
    );
    assert!(first_new > switched, "before the switch");
    assert!(first_new < switched + MET_WITHIN);
    for hit in &hits {
        // Readers ask at the same time, so the first hits of the new server may overlap with the last ones of the former.
        let is_new = hit.server == Server::Promoted;
        assert!(is_new || hit.asked < first_new + Duration::from_millis(100));
        let writes = if is_new { &promoted } else { &former };
        let lapsed = writes.partition_point(|(_, _, at)| *at + LEASE < hit.asked);
        let mut lapsed = writes[..lapsed].iter().rev();
        let newest = lapsed.find(|(order, _, _)| *order == hit.order);
        let newest = newest.map(|(_, number, _)| *number);
        assert!(Some(hit.number) >= newest, "older than the lease");
    }
    let new_hits = hits.iter().filter(|hit| hit.server == Server::Promoted);
    assert!(new_hits.count() > 500, "too few to prove anything");
}
