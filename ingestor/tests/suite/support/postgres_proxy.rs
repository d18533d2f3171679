//! A proxy that understands just enough of PostgreSQL's protocol to strike inside the COMMIT of a batch: it cuts after
//! so many bytes, or lets the COMMIT through and holds its answer back.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

use super::PATIENCE;

/// Codes in place of a protocol version, by which a client asks for encryption. It continues after the answer.
const ENCRYPTION_REQUESTS: [u32; 2] = [80_877_103, 80_877_104];

/// What the proxy does, once, to the next transaction that copies rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// Cut after so many bytes from the first `CopyData` message on, at the latest before the COMMIT.
    Rows(usize, End),
    /// Cut after so many bytes of the COMMIT message.
    Commit(usize, End),
    /// Cut after so many bytes of the answer to the COMMIT.
    Answer(usize, End),
    /// Hold the answer to the COMMIT back until [`PostgresProxy::release`].
    HoldAnswer,
}

/// How a connection ends, for both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Properly, by FIN.
    Close,
    /// By RST.
    Reset,
}

/// Bytes of the last transaction that copied rows and went through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lengths {
    /// From the first `CopyData` message to the COMMIT.
    pub rows: usize,
    /// The COMMIT message.
    pub commit: usize,
    /// The answer to it.
    pub answer: usize,
}

#[derive(Debug, Default)]
struct State {
    lengths: Lengths,
    armed: Option<Strike>,
    /// The strike has begun.
    struck: bool,
    /// Held answers may be delivered.
    released: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn strike(&self) {
        let mut state = self.lock();
        state.armed = None;
        state.struck = true;
        self.changed.notify_all();
    }
}

/// A running proxy, which ends with the test's process.
#[derive(Debug)]
pub struct PostgresProxy {
    port: u16,
    shared: Arc<Shared>,
}

impl PostgresProxy {
    /// Forwards connections to a server without TLS.
    pub fn start(host: &str, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let own_port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let (target, of_threads) = ((host.to_owned(), port), shared.clone());
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, shared) = (client.unwrap(), of_threads.clone());
                // While the server is away the client sees a connection that ends at once.
                if let Ok(server) = TcpStream::connect((target.0.as_str(), target.1)) {
                    Link::start(client, server, shared);
                }
            }
        });
        Self {
            port: own_port,
            shared,
        }
    }

    /// The port on 127.0.0.1 that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Strikes once, at the next chance.
    pub fn arm(&self, strike: Strike) {
        let mut state = self.shared.lock();
        (state.armed, state.struck, state.released) = (Some(strike), false, false);
    }

    pub fn lengths(&self) -> Lengths {
        self.shared.lock().lengths
    }

    pub fn has_struck(&self) -> bool {
        self.shared.lock().struck
    }

    pub fn wait_until_struck(&self) {
        let state = self.shared.lock();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, PATIENCE, |state| !state.struck)
            .unwrap();
        assert!(state.struck, "no transaction came by: {state:?}");
    }

    /// Lets a held answer be delivered.
    pub fn release(&self) {
        self.shared.lock().released = true;
        self.shared.changed.notify_all();
    }
}

/// One connection.
struct Link {
    client: TcpStream,
    server: TcpStream,
    shared: Arc<Shared>,
    /// The next bytes of the server are the answer to the COMMIT of rows.
    awaits_answer: AtomicBool,
    /// How it ends. The first to set it decides.
    end: OnceLock<End>,
}

impl Link {
    fn start(client: TcpStream, server: TcpStream, shared: Arc<Shared>) {
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let link = Arc::new(Self {
            client,
            server,
            shared,
            awaits_answer: AtomicBool::new(false),
            end: OnceLock::new(),
        });
        let upstream = link.clone();
        thread::spawn(move || {
            upstream.pass_requests();
            upstream.end(End::Close);
        });
        thread::spawn(move || {
            link.pass_answers();
            link.end(End::Close);
        });
    }

    /// Ends both connections. A reset is sent when the last thread drops the sockets, instead of what a shutdown would
    /// send.
    fn end(&self, end: End) {
        if self.end.set(end).is_err() {
            return;
        }
        for stream in [&self.client, &self.server] {
            match end {
                End::Close => stream.shutdown(Shutdown::Both).ok(),
                End::Reset => {
                    set_socket_linger(stream, Some(Duration::ZERO)).unwrap();
                    stream.shutdown(Shutdown::Read).ok()
                }
            };
        }
    }

    /// Passes whole messages, so that each can be looked at; `None` at the end of the connection.
    fn pass_requests(&self) -> Option<()> {
        let mut is_startup = true;
        // Since the first CopyData message of a transaction.
        let mut rows_bytes = None;
        loop {
            let message = read_message(&self.client, is_startup)?;
            if is_startup {
                let code = u32::from_be_bytes(message[4..8].try_into().unwrap());
                is_startup = ENCRYPTION_REQUESTS.contains(&code);
                self.send(&message)?;
                continue;
            }
            if message[0] == b'd' {
                rows_bytes.get_or_insert(0);
            }
            let Some(rows) = rows_bytes else {
                self.send(&message)?;
                continue;
            };
            let is_commit = message[0] == b'Q' && message[5..].starts_with(b"COMMIT");
            let armed = self.shared.lock().armed;
            match armed {
                Some(Strike::Rows(after, end)) if is_commit || rows + message.len() > after => {
                    let last_bytes = if is_commit { 0 } else { after - rows };
                    return self.cut(&message[..last_bytes], end);
                }
                Some(Strike::Commit(after, end)) if is_commit => {
                    return self.cut(&message[..after], end);
                }
                _ => {}
            }
            if is_commit {
                let mut state = self.shared.lock();
                (state.lengths.rows, state.lengths.commit) = (rows, message.len());
                drop(state);
                // Set before the COMMIT is forwarded: only its answer can come now.
                self.awaits_answer.store(true, Ordering::SeqCst);
            }
            rows_bytes = (!is_commit).then_some(rows + message.len());
            self.send(&message)?;
        }
    }

    fn send(&self, bytes: &[u8]) -> Option<()> {
        (&self.server).write_all(bytes).ok()
    }

    fn cut(&self, last_bytes: &[u8], end: End) -> Option<()> {
        self.send(last_bytes)?;
        self.shared.strike();
        self.end(end);
        None
    }

    fn pass_answers(&self) -> Option<()> {
        let mut buffer = [0; 16 * 1024];
        loop {
            let length = (&self.server).read(&mut buffer).ok()?;
            let bytes = buffer.get(..length).filter(|bytes| !bytes.is_empty())?;
            if self.awaits_answer.swap(false, Ordering::SeqCst) {
                self.pass_answer_to_commit(bytes)?;
            } else {
                (&self.client).write_all(bytes).ok()?;
            }
        }
    }

    fn pass_answer_to_commit(&self, bytes: &[u8]) -> Option<()> {
        let mut state = self.shared.lock();
        state.lengths.answer = bytes.len();
        let armed = state.armed;
        drop(state);
        match armed {
            Some(Strike::Answer(after, end)) => {
                (&self.client).write_all(&bytes[..after]).ok()?;
                self.shared.strike();
                self.end(end);
                return None;
            }
            Some(Strike::HoldAnswer) => {
                self.shared.strike();
                let state = self.shared.lock();
                drop(
                    self.shared
                        .changed
                        .wait_while(state, |state| !state.released),
                );
            }
            _ => {}
        }
        (&self.client).write_all(bytes).ok()
    }
}

/// A message on the wire: a type (not in the first message), and a length that includes itself.
fn read_message(mut stream: &TcpStream, is_startup: bool) -> Option<Vec<u8>> {
    let type_length = usize::from(!is_startup);
    let mut message = vec![0; type_length + 4];
    stream.read_exact(&mut message).ok()?;
    let length = u32::from_be_bytes(message[type_length..].try_into().unwrap());
    message.resize(type_length + usize::try_from(length).unwrap(), 0);
    stream.read_exact(&mut message[type_length + 4..]).ok()?;
    Some(message)
}
