//! A TCP proxy in front of a server that tests can cut, mend, slow down, and turn into a black hole.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// As much of a connection's beginning as is looked at for a name; PostgreSQL's holds the application's.
const BEGINNING_BYTES: usize = 1024;

/// As much as is read at once.
const READ_BYTES: usize = 1024;
/// How many reads may be under way: few enough that a sender soon feels a receiver that takes nothing.
const READS_UNDER_WAY: usize = 4096;

/// Passes bytes on until it is told otherwise.
#[derive(Debug)]
pub struct TcpProxy {
    address: SocketAddr,
    link_tx: Arc<watch::Sender<Link>>,
}

#[derive(Clone, Debug)]
struct Link {
    is_cut: bool,
    /// How often it was cut: connections from before are dropped even where it was mended in the same moment.
    cuts: u64,
    held: Option<Held>,
    /// How long the server's answers to connections of a name take to arrive.
    slow: Option<(String, Duration)>,
}

#[derive(Clone, Debug)]
enum Held {
    All,
    /// Connections that begin with this in them.
    Named(String),
}

impl Link {
    fn holds(&self, beginning: &[u8]) -> bool {
        match &self.held {
            None => false,
            Some(Held::All) => true,
            Some(Held::Named(name)) => contains(beginning, name),
        }
    }

    fn delay(&self, beginning: &[u8]) -> Duration {
        match &self.slow {
            Some((name, delay)) if contains(beginning, name) => *delay,
            _ => Duration::ZERO,
        }
    }
}

fn contains(beginning: &[u8], name: &str) -> bool {
    let mut parts = beginning.windows(name.len());
    parts.any(|part| part == name.as_bytes())
}

impl TcpProxy {
    /// Starts passing connections on to `host:port`. Their clients must speak first.
    pub async fn start(host: &str, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = (host.to_owned(), port);
        let link_tx = Arc::new(watch::Sender::new(Link {
            is_cut: false,
            cuts: 0,
            held: None,
            slow: None,
        }));
        let link_rx = link_tx.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, target.clone(), link_rx.clone()));
            }
        });
        Self { address, link_tx }
    }

    /// The port on 127.0.0.1 that it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Drops every connection and refuses new ones.
    pub fn cut(&self) {
        self.link_tx.send_modify(|link| {
            link.is_cut = true;
            link.cuts += 1;
        });
    }

    /// Takes connections again, lets the held ones go on, and is quick.
    pub fn mend(&self) {
        self.link_tx.send_modify(|link| {
            link.is_cut = false;
            link.held = None;
            link.slow = None;
        });
    }

    /// Passes nothing on in either direction, the end of a connection included, and tells nobody.
    pub fn hold(&self) {
        self.link_tx.send_modify(|link| link.held = Some(Held::All));
    }

    /// As [`Self::hold`], for the connections that have this in their first bytes.
    pub fn hold_named(&self, name: &str) {
        let held = Held::Named(name.to_owned());
        self.link_tx.send_modify(|link| link.held = Some(held));
    }

    /// Lets what the server sends arrive so much later, for the connections that have this in their first bytes.
    pub fn slow_named(&self, name: &str, delay: Duration) {
        let slow = Some((name.to_owned(), delay));
        self.link_tx.send_modify(|link| link.slow = slow);
    }
}

async fn pass(client: TcpStream, target: (String, u16), mut link_rx: watch::Receiver<Link>) {
    let cuts = {
        let link = link_rx.borrow_and_update();
        if link.is_cut {
            return;
        }
        link.cuts
    };
    let both_ways = pass_both_ways(client, target, link_rx.clone());
    tokio::select! {
        // Either end broke the connection.
        _ = both_ways => {}
        _ = link_rx.wait_for(|link| link.cuts != cuts) => {}
    }
}

async fn pass_both_ways(
    client: TcpStream,
    target: (String, u16),
    link_rx: watch::Receiver<Link>,
) -> io::Result<()> {
    let mut beginning = [0; BEGINNING_BYTES];
    let length = client.peek(&mut beginning).await?;
    let beginning = &beginning[..length];
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (read_client_tx, read_client_rx) = mpsc::channel(READS_UNDER_WAY);
    let (read_server_tx, read_server_rx) = mpsc::channel(READS_UNDER_WAY);
    let quick = |_: &Link| Duration::ZERO;
    let slow = |link: &Link| link.delay(beginning);
    tokio::try_join!(
        read(from_client, read_client_tx),
        read(from_server, read_server_tx),
        write(to_server, read_client_rx, beginning, link_rx.clone(), quick),
        write(to_client, read_server_rx, beginning, link_rx, slow),
    )?;
    Ok(())
}

/// Bytes and when they came; none at the end.
type Read = (Instant, Vec<u8>);

async fn read(mut from: OwnedReadHalf, read_tx: mpsc::Sender<Read>) -> io::Result<()> {
    loop {
        let mut buffer = vec![0; READ_BYTES];
        let length = from.read(&mut buffer).await?;
        buffer.truncate(length);
        let is_wanted = read_tx.send((Instant::now(), buffer)).await.is_ok();
        if length == 0 || !is_wanted {
            return Ok(());
        }
    }
}

async fn write(
    mut to: OwnedWriteHalf,
    mut read_rx: mpsc::Receiver<Read>,
    beginning: &[u8],
    mut link_rx: watch::Receiver<Link>,
    delay: impl Fn(&Link) -> Duration,
) -> io::Result<()> {
    while let Some((read_at, bytes)) = read_rx.recv().await {
        // A sender closes only with its test.
        link_rx.wait_for(|link| !link.holds(beginning)).await.ok();
        let delay = delay(&link_rx.borrow());
        sleep_until(read_at + delay).await;
        if bytes.is_empty() {
            return to.shutdown().await;
        }
        to.write_all(&bytes).await?;
    }
    Ok(())
}
