//! A TCP proxy in front of a server. Tests can cut it, mend it, slow it down, and make it a black hole.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// How many of a connection's first bytes are searched for a name. PostgreSQL's start-up message contains the
/// application's name.
const BEGINNING_BYTES: usize = 1024;

/// How many bytes are read at once.
const READ_BYTES: usize = 1024;
/// How many reads may be in flight. They are few enough that a sender soon notices a receiver that reads nothing.
const READS_UNDER_WAY: usize = 4096;

/// Passes bytes on until a test says otherwise.
#[derive(Debug)]
pub struct TcpProxy {
    address: SocketAddr,
    link_tx: watch::Sender<Link>,
}

#[derive(Clone, Debug)]
struct Link {
    is_cut: bool,
    /// How often it was cut. Connections from before a cut are dropped even if the proxy was mended at once.
    cuts: u64,
    held: Option<Held>,
    /// The delay of the server's answers, for the connections with this name.
    slow: Option<(String, Duration)>,
}

#[derive(Clone, Debug)]
enum Held {
    All,
    /// The connections whose first bytes contain this name.
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

/// Returns where a connection goes that begins with these bytes.
type Route = dyn Fn(&[u8]) -> (String, u16) + Send + Sync;

fn contains(beginning: &[u8], name: &str) -> bool {
    let mut parts = beginning.windows(name.len());
    parts.any(|part| part == name.as_bytes())
}

impl TcpProxy {
    /// Starts passing connections on to `host:port`. Their clients must speak first.
    pub async fn start(host: &str, port: u16) -> Self {
        let target = (host.to_owned(), port);
        Self::start_with(Arc::new(move |_: &[u8]| target.clone())).await
    }

    /// Starts passing each connection on to the port on 127.0.0.1 that `route` returns for its first bytes. PostgreSQL's
    /// start-up message contains the application's name.
    pub async fn start_routed(route: impl Fn(&str) -> u16 + Send + Sync + 'static) -> Self {
        let route = move |beginning: &[u8]| {
            let port = route(&String::from_utf8_lossy(beginning));
            ("127.0.0.1".to_owned(), port)
        };
        Self::start_with(Arc::new(route)).await
    }

    async fn start_with(route: Arc<Route>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let link_tx = watch::Sender::new(Link {
            is_cut: false,
            cuts: 0,
            held: None,
            slow: None,
        });
        let link_rx = link_tx.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, Arc::clone(&route), link_rx.clone()));
            }
        });
        Self { address, link_tx }
    }

    /// The port on 127.0.0.1 at which it listens.
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

    /// Ends all faults: accepts connections again, releases the held ones, and delays nothing.
    pub fn mend(&self) {
        self.link_tx.send_modify(|link| {
            link.is_cut = false;
            link.held = None;
            link.slow = None;
        });
    }

    /// Passes nothing on in either direction, not even the end of a connection.
    pub fn hold(&self) {
        self.link_tx.send_modify(|link| link.held = Some(Held::All));
    }

    /// Like [`Self::hold`], for the connections whose first bytes contain `name`.
    pub fn hold_named(&self, name: &str) {
        let held = Held::Named(name.to_owned());
        self.link_tx.send_modify(|link| link.held = Some(held));
    }

    /// Delays what the server sends, for the connections whose first bytes contain `name`.
    pub fn slow_named(&self, name: &str, delay: Duration) {
        let slow = Some((name.to_owned(), delay));
        self.link_tx.send_modify(|link| link.slow = slow);
    }
}

async fn pass(client: TcpStream, route: Arc<Route>, mut link_rx: watch::Receiver<Link>) {
    let cuts = {
        let link = link_rx.borrow_and_update();
        if link.is_cut {
            return;
        }
        link.cuts
    };
    let both_ways = pass_both_ways(client, route, link_rx.clone());
    tokio::select! {
        // Either end broke the connection.
        _ = both_ways => {}
        _ = link_rx.wait_for(|link| link.cuts != cuts) => {}
    }
}

async fn pass_both_ways(
    client: TcpStream,
    route: Arc<Route>,
    link_rx: watch::Receiver<Link>,
) -> io::Result<()> {
    let mut beginning = [0; BEGINNING_BYTES];
    let length = client.peek(&mut beginning).await?;
    let beginning = &beginning[..length];
    let server = TcpStream::connect(route(beginning)).await?;
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

/// Bytes, and when they were read. There are none at the end of the connection.
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
        // The sender is closed only when its test ends.
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
