//! Hostile clients, each kind in turn, while other clients read.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shared::testing::{TestDatabase, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::exports::resident_bytes;
use crate::support::program::Program;
use crate::support::{PATIENCE, model, store};

const READ: &[u8] = b"GET /order/b563feb7b2b84b6test HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// The number of reads, each over a connection of its own. It is large enough to measure the 99th percentile.
const READS: usize = 1_000;
/// The limit of the 99th percentile, in addition to what the quiet machine takes, which is measured first.
const MOST_P99: Duration = Duration::from_millis(100);
/// Room for thousands of connections with a buffer each, but for no body and no header beyond its bound.
const MOST_GROWTH_BYTES: u64 = 256 * 1024 * 1024;

/// Within this time the server must end as many connections as there are clients. It covers the time for a header or a body
/// and the pause between two attempts.
const HUNG_UP_WITHIN: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    /// Sends one byte of a header per second.
    Dribbling,
    /// Sends one request, then nothing.
    Resting,
    /// Sends a header of one mebibyte.
    Flooding,
    /// Begins HTTP/2 with prior knowledge, then sends what looks like frames.
    Http2,
    /// Sends chunks of a body without end.
    EndlessBody,
}

impl Harm {
    /// The number of clients, and the number of their addresses.
    fn clients(self) -> (usize, usize) {
        match self {
            Self::Dribbling => (2_000, 2),
            // These are more connections than allowed. The others are refused, and try again.
            Self::Resting => (10_000, 4),
            Self::Flooding | Self::Http2 | Self::EndlessBody => (50, 1),
        }
    }

    /// Does harm until the server ends the connection.
    async fn attempt(self, mut stream: TcpStream) -> std::io::Result<()> {
        match self {
            Self::Dribbling => {
                stream.write_all(b"GET /livez HTTP/1.1\r\nX-Slow: ").await?;
                loop {
                    stream.write_all(b"a").await?;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            Self::Resting => {
                stream
                    .write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    .await?;
                while stream.read(&mut [0; 1024]).await? > 0 {}
            }
            Self::Flooding => {
                stream.write_all(b"GET /livez HTTP/1.1\r\nX-Long: ").await?;
                stream.write_all(&vec![b'a'; 1024 * 1024]).await?;
            }
            Self::Http2 => {
                stream
                    .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                    .await?;
                loop {
                    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            Self::EndlessBody => {
                stream
                    .write_all(b"PUT /api/v1/orders/a HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                                 Transfer-Encoding: chunked\r\n\r\n")
                    .await?;
                let chunk = [&b"4000\r\n"[..], &[b' '; 0x4000], b"\r\n"].concat();
                loop {
                    stream.write_all(&chunk).await?;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_clients_slow_nobody_down_and_take_little_memory() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let database = TestDatabase::create();
    store(&database, &model());
    let program = Program::start(&database, &[]).await;
    let before = resident_bytes(&program);
    let quiet = p99_of_reads(program.port).await;
    for harm in [
        Harm::Dribbling,
        Harm::Resting,
        Harm::Flooding,
        Harm::Http2,
        Harm::EndlessBody,
    ] {
        let (count, addresses) = harm.clients();
        let hung_up = Arc::new(AtomicUsize::new(0));
        let mut clients = JoinSet::new();
        for number in 0..count {
            // Linux has all of 127.0.0.0/8.
            let source = Ipv4Addr::new(127, 0, 1, 1 + (number % addresses) as u8);
            clients.spawn(do_harm(harm, source, program.port, Arc::clone(&hung_up)));
        }
        eventually(
            "the server has ended their connections",
            HUNG_UP_WITHIN,
            async || hung_up.load(Ordering::Relaxed) >= count,
        )
        .await;
        let p99 = p99_of_reads(program.port).await;
        let growth = resident_bytes(&program).saturating_sub(before);
        eprintln!(
            "{harm:?}: p99 {p99:?} (quiet {quiet:?}), {} MiB more",
            growth / 1024 / 1024
        );
        assert!(p99 < MOST_P99 + quiet, "{harm:?}: {p99:?}, quiet {quiet:?}");
        assert!(growth < MOST_GROWTH_BYTES, "{harm:?}: {growth} bytes");
        clients.shutdown().await;
    }
}

/// Does harm again and again, with a short pause, because the test is about the server and not about the machine.
async fn do_harm(harm: Harm, source: Ipv4Addr, port: u16, hung_up: Arc<AtomicUsize>) {
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((source, 0).into()).unwrap();
        if let Ok(stream) = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await {
            harm.attempt(stream).await.ok();
            hung_up.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn p99_of_reads(port: u16) -> Duration {
    let mut times = Vec::new();
    for _ in 0..READS {
        let started = Instant::now();
        timeout(PATIENCE, read(port)).await.expect("an answer");
        times.push(started.elapsed());
    }
    times.sort_unstable();
    times[READS * 99 / 100]
}

async fn read(port: u16) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
    stream.write_all(READ).await.unwrap();
    let mut answer = [0; 4096];
    let length = stream.read(&mut answer).await.unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
}
