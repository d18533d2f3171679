//! PostgreSQL: one or two servers, the pool of connections to them, and what the operators do.

use shuttle::rand::{Rng, thread_rng};

use super::ledger::{Content, Each, History, KEYS, Ledger, Seen, Time, label};

/// What a server sends to the listener, in the order of the commits.
#[derive(Clone, Copy, Debug)]
pub(super) enum Message {
    /// An order has reached a state of a history. The listener may not understand it.
    Event {
        history: History,
        key: usize,
        place: usize,
        is_readable: bool,
    },
    /// The notification of the heartbeat that was sent at this time.
    Echo(Time),
}

/// A server. Its number is its place among the servers.
#[derive(Debug)]
struct Server {
    /// `None` once it is dead.
    history: Option<History>,
    next_version: i64,
    /// A version that an insert has drawn which has not committed yet.
    drawn: Each<Option<i64>>,
    /// Rises when all connections die.
    life: u64,
    /// What the listener has not received yet; `None` while nobody listens.
    queue: Option<Vec<Message>>,
}

/// A copy of a server's state: a standby, or a backup.
#[derive(Clone, Copy, Debug)]
struct Backup {
    states: Each<(Content, i64)>,
    next_version: i64,
}

/// A connection. The listener's history is read with each heartbeat, that of the pool's only here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connection {
    server: usize,
    life: u64,
    pub(super) label: u64,
    made: u64,
}

/// What the listener says of its server, and what the pool has found.
#[derive(Debug, Default)]
pub(super) struct Trust {
    /// A connection that was made before is not used any more.
    since: u64,
    pub(super) heard: Option<u64>,
    pub(super) has_mismatch: bool,
}

#[derive(Debug)]
pub(super) struct Servers {
    servers: Vec<Server>,
    /// What a standby holds. It lags behind the first server.
    standby: Backup,
    backup: Backup,
    pool: Vec<Connection>,
    connections_made: u64,
    pub(super) trust: Trust,
}

impl Servers {
    /// One server.
    pub(super) fn new(ledger: &mut Ledger) -> Self {
        let mut random = thread_rng();
        let states = [3, 4].map(|version| match random.gen_ratio(2, 3) {
            true => (ledger.new_content(), version),
            false => (None, 0),
        });
        let backup = Backup {
            states,
            next_version: 5,
        };
        let mut servers = Self {
            servers: Vec::new(),
            standby: backup,
            backup,
            pool: Vec::new(),
            connections_made: 0,
            trust: Trust::default(),
        };
        servers.start(ledger, backup);
        servers.servers[0].drawn = [Some(1), Some(2)];
        servers
    }

    fn start(&mut self, ledger: &mut Ledger, from: Backup) {
        self.servers.push(Server {
            history: Some(ledger.begin_history(from.states)),
            next_version: from.next_version,
            drawn: [None; 2],
            life: 0,
            queue: None,
        });
    }

    /// Any server that lives.
    fn any(&self) -> usize {
        let alive: Vec<usize> = (0..self.servers.len())
            .filter(|server| self.servers[*server].history.is_some())
            .collect();
        alive[thread_rng().gen_range(0..alive.len())]
    }

    /// Connects to any server that accepts writes.
    pub(super) fn connect(&mut self) -> Connection {
        let server = self.any();
        let Server { history, life, .. } = self.servers[server];
        self.connections_made += 1;
        Connection {
            server,
            life,
            label: history.map_or(0, label),
            made: self.connections_made,
        }
    }

    /// The history that the server of a connection has now; `None` if the connection is broken.
    pub(super) fn history(&self, connection: Connection) -> Option<History> {
        let server = &self.servers[connection.server];
        server.history.filter(|_| server.life == connection.life)
    }

    /// Takes a connection out of the pool, as the api's repository does.
    pub(super) fn take(&mut self) -> Connection {
        while let Some(connection) = self.pool.pop() {
            if connection.made > self.trust.since && self.history(connection).is_some() {
                return self.checked(connection);
            }
        }
        let connection = self.connect();
        self.checked(connection)
    }

    fn checked(&mut self, connection: Connection) -> Connection {
        if (self.trust.heard).is_some_and(|heard| heard != connection.label) {
            self.distrust();
            self.trust.has_mismatch = true;
        }
        connection
    }

    pub(super) fn give_back(&mut self, connection: Connection) {
        self.pool.push(connection);
    }

    pub(super) fn distrust(&mut self) {
        self.trust.since = self.connections_made;
        self.pool.clear();
    }

    /// LISTEN commits on this connection.
    pub(super) fn listen(&mut self, connection: Connection) {
        self.servers[connection.server].queue = Some(Vec::new());
    }

    pub(super) fn unlisten(&mut self, connection: Connection) {
        self.servers[connection.server].queue = None;
    }

    /// Runs the statement of a heartbeat. Gives the history that it reads.
    pub(super) fn heartbeat(&mut self, connection: Connection, sent: Time) -> Option<u64> {
        let history = self.history(connection)?;
        let queue = self.servers[connection.server].queue.as_mut()?;
        queue.push(Message::Echo(sent));
        Some(label(history))
    }

    /// Gives the next message to the listener.
    pub(super) fn receive(&mut self, connection: Connection) -> Option<Message> {
        self.history(connection)?;
        let queue = self.servers[connection.server].queue.as_mut()?;
        (!queue.is_empty()).then(|| queue.remove(0))
    }

    /// Reads an order.
    pub(super) fn read(&self, ledger: &Ledger, connection: Connection, key: usize) -> Option<Seen> {
        Some(ledger.current(self.history(connection)?, key, connection.label))
    }

    /// Inserts, updates or deletes an order, and tells the listener. Returns what a connection of the pool would read then.
    pub(super) fn commit(
        &mut self,
        ledger: &mut Ledger,
        connection: Connection,
        key: usize,
    ) -> Option<Seen> {
        let history = self.history(connection)?;
        let mut random = thread_rng();
        let before = ledger.current(history, key, connection.label);
        let server = &mut self.servers[connection.server];
        let mut draw = || {
            server.next_version += 1;
            server.next_version - 1
        };
        let drawn = server.drawn[key].take();
        let (content, version) = match before.content {
            // An insert may have drawn its version before this commit, which it waits for.
            Some(_) => {
                let drawn = drawn.or_else(|| random.gen_ratio(1, 2).then(&mut draw));
                let is_deleted = random.gen_ratio(1, 2);
                let content = (!is_deleted).then(|| ledger.new_content()).flatten();
                let version = if is_deleted { 0 } else { draw() };
                server.drawn[key] = drawn;
                (content, version)
            }
            None => {
                let drawn = drawn.filter(|_| random.gen_ratio(4, 5));
                (ledger.new_content(), drawn.unwrap_or_else(draw))
            }
        };
        let place = ledger.commit(history, key, content, version);
        self.notify(connection, key, place);
        self.read(ledger, connection, key)
    }

    fn notify(&mut self, connection: Connection, key: usize, place: usize) {
        let server = &mut self.servers[connection.server];
        if let (Some(queue), Some(history)) = (&mut server.queue, server.history) {
            queue.push(Message::Event {
                history,
                key,
                place,
                is_readable: !thread_rng().gen_ratio(1, 5),
            });
        }
    }

    /// Draws a new version for an order that still has this one, and tells the listener.
    pub(super) fn redraw(&mut self, ledger: &mut Ledger, key: usize, version: i64) {
        let connection = self.take();
        let Some(seen) = self.read(ledger, connection, key) else {
            return;
        };
        if seen.content.is_some() && seen.version == version {
            let server = &mut self.servers[connection.server];
            server.next_version += 1;
            let version = server.next_version - 1;
            let place = ledger.commit(seen.history, key, seen.content, version);
            self.notify(connection, key, place);
        }
        self.give_back(connection);
    }

    /// Changes an order on any server without an event, and without a version unless a row appears.
    pub(super) fn tamper(&mut self, ledger: &mut Ledger, key: usize) {
        let connection = self.connect();
        let Some(before) = self.read(ledger, connection, key) else {
            return;
        };
        let (content, version) = match before.content {
            Some(_) if thread_rng().gen_ratio(1, 3) => (None, 0),
            Some(_) => (ledger.new_content(), before.version),
            None => {
                let server = &mut self.servers[connection.server];
                server.next_version += 1;
                (ledger.new_content(), server.next_version - 1)
            }
        };
        ledger.commit(before.history, key, content, version);
        ledger.tamper(key);
    }

    fn copy(&self, ledger: &Ledger, server: usize) -> Option<Backup> {
        Some(Backup {
            states: ledger.states(self.servers[server].history?),
            next_version: self.servers[server].next_version,
        })
    }

    /// Sends what the standby lacks.
    pub(super) fn replicate(&mut self, ledger: &Ledger) {
        self.standby = self.copy(ledger, 0).unwrap_or(self.standby);
    }

    /// Makes a primary of the standby, if that has not happened yet. The old one lives on until it is fenced.
    pub(super) fn promote(&mut self, ledger: &mut Ledger) {
        if self.servers.len() == 1 {
            self.start(ledger, self.standby);
        }
    }

    /// Ends the old primary, if there is a new one.
    pub(super) fn fence(&mut self, ledger: &mut Ledger) {
        if self.servers.len() == 1 {
            return;
        }
        if let Some(history) = self.servers[0].history.take() {
            ledger.end_history(history);
        }
    }

    pub(super) fn back_up(&mut self, ledger: &Ledger) {
        let server = self.any();
        self.backup = self.copy(ledger, server).unwrap_or(self.backup);
    }

    /// Brings back an old state on any server. It sends no event. Connections die only if the server's files were
    /// replaced.
    pub(super) fn restore(&mut self, ledger: &mut Ledger) {
        let number = self.any();
        let server = &mut self.servers[number];
        let Some(before) = server.history else {
            return;
        };
        if thread_rng().gen_ratio(1, 3) {
            server.life += 1;
            server.queue = None;
        }
        // Until the listener notices, its history and the labels of the pool's connections stand for the new one as well.
        let is_heard = ledger.hears(before);
        ledger.end_history(before);
        let history = ledger.begin_history(self.backup.states);
        server.history = Some(history);
        server.next_version = self.backup.next_version;
        server.drawn = [None; KEYS.len()];
        if is_heard {
            ledger.hear(history);
        }
    }
}
