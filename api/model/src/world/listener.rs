//! The listener, as in `api/src/cache/listener.rs`: each step is a turn of its loop.

use std::sync::Arc;

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use super::ledger::{History, KEYS, LEASE, Time, label};
use super::servers::{Connection, Message};
use super::{Outside, World, happens};
use crate::cache::proof::Heartbeats;
use crate::sync::sound;

const STEPS: usize = 14;
/// How much older than the lease the proof may become before the listener connects anew.
const SUSPECT: Time = 3;

#[derive(Debug, Default)]
pub(super) struct Listener {
    session: Option<Session>,
    /// The history that was heard of last.
    last: Option<u64>,
    is_flush_delayed: bool,
    /// What a delayed flush has to drop: states that nobody may be shown anything older than.
    flushed: Vec<(History, usize, usize)>,
}

/// A connection that listens.
#[derive(Debug)]
struct Session {
    connection: Connection,
    history: History,
    returned: Heartbeats,
    /// The time and the history of heartbeats whose statements have run.
    answers: Vec<(Time, u64)>,
}

impl Listener {
    pub(super) fn run(&mut self, world: &Arc<World>) {
        for _ in 0..STEPS {
            self.step(world);
        }
    }

    pub(super) fn step(&mut self, world: &Arc<World>) {
        let Some(session) = &mut self.session else {
            self.connect(world);
            if let Some(session) = &self.session {
                let (world, epoch) = (Arc::clone(world), world.core.epoch());
                debug_assert!(session.answers.is_empty());
                thread::spawn(move || world.revalidate(epoch));
            }
            return;
        };
        let is_broken = {
            let mut outside = world.outside();
            // Of what is ready, the loop takes anything first.
            let has_mismatch = thread_rng().gen_ratio(1, 3)
                && std::mem::take(&mut outside.servers.trust.has_mismatch);
            has_mismatch || outside.servers.history(session.connection).is_none()
        };
        match thread_rng().gen_range(0..8) {
            _ if is_broken || happens(world.climate.loss) => self.lose(world),
            0..=1 => self.tick(world),
            2..=4 if !session.answers.is_empty() => self.answer(world),
            _ => {
                self.receive(world);
            }
        }
    }

    /// LISTEN, the first notification, and the history. Then loads may store.
    fn connect(&mut self, world: &Arc<World>) {
        let (connection, sent) = {
            let mut outside = world.outside();
            let connection = outside.servers.connect();
            outside.servers.listen(connection);
            (connection, outside.ledger.next_time())
        };
        let history = {
            let mut outside = world.outside();
            // The notification of another session, and then the history. Nothing is lost if both are one step.
            let history = outside.servers.history(connection);
            if history.is_some() {
                outside.status.proof = Some(sent);
            }
            history
        };
        let Some(history) = history else {
            world.outside().servers.unlisten(connection);
            return;
        };
        let label = label(history);
        let is_new = self.last.is_some_and(|last| last != label);
        if is_new {
            world.outside().servers.distrust();
            if sound!(true, EntriesSurviveANewHistory, false) {
                world.core.clear();
            }
        }
        {
            let mut outside = world.outside();
            outside.servers.trust.heard = Some(label);
            outside.ledger.hear(history);
            outside.ledger.open(history);
            // A restore may have come in between. The listener notices it at its first heartbeat.
            if let Some(history) = outside.servers.history(connection) {
                outside.ledger.hear(history);
            }
        }
        self.last = Some(label);
        world.core.open_fills(label);
        world.core.set_serving(true);
        let mut outside = world.outside();
        outside.status.serves = true;
        outside.ledger.promise_until(history, sent);
        drop(outside);
        self.session = Some(Session {
            connection,
            history,
            returned: Heartbeats::default(),
            answers: Vec::new(),
        });
    }

    fn lose(&mut self, world: &World) {
        let Some(session) = self.session.take() else {
            return;
        };
        // The database notices the loss first.
        world.outside().servers.unlisten(session.connection);
        world.core.close();
        let mut outside = world.outside();
        outside.servers.trust.heard = None;
        outside.status.proof = None;
        outside.status.serves = false;
        outside.ledger.stop_hearing(None);
    }

    fn tick(&mut self, world: &World) {
        if thread_rng().gen_ratio(1, 4) {
            self.flush(world);
        }
        let Some(session) = &mut self.session else {
            return;
        };
        let sent = world.outside().ledger.next_time();
        let read = world.outside().servers.heartbeat(session.connection, sent);
        session.answers.extend(read.map(|history| (sent, history)));
        let age = {
            let outside = world.outside();
            let proof = outside.status.proof.unwrap_or_default();
            outside.ledger.now.saturating_sub(proof)
        };
        if age >= LEASE + SUSPECT {
            self.lose(world);
        } else if age >= LEASE {
            world.core.set_serving(false);
            world.outside().status.serves = false;
        }
    }

    /// Takes the answer to a heartbeat's statement.
    fn answer(&mut self, world: &World) {
        let Some(session) = &mut self.session else {
            return;
        };
        let (sent, history) = session.answers.remove(0);
        if Some(history) != self.last {
            return self.lose(world);
        }
        session.returned.compare(sent);
        self.prove(world);
    }

    fn prove(&mut self, world: &World) {
        let Some(session) = &self.session else {
            return;
        };
        let Some(proven) = session.returned.proven_ms(self.is_flush_delayed) else {
            return;
        };
        let is_late = {
            let mut outside = world.outside();
            let Outside { ledger, status, .. } = &mut *outside;
            let proven = proven.min(ledger.now);
            status.proof = status.proof.max(Some(proven));
            ledger.promise_until(session.history, proven);
            !status.serves && status.is_young(ledger.now)
        };
        if is_late {
            world.core.set_serving(true);
            world.outside().status.serves = true;
        }
    }

    /// Drops every entry now if a flush is wanted.
    fn flush(&mut self, world: &World) {
        if !self.is_flush_delayed {
            return;
        }
        world.core.clear();
        self.is_flush_delayed = false;
        let mut outside = world.outside();
        for (history, key, place) in self.flushed.drain(..) {
            outside.ledger.promise(history, key, place);
        }
    }

    /// Handles the next message. Returns whether there was one.
    fn receive(&mut self, world: &World) -> bool {
        let Some(session) = &mut self.session else {
            return false;
        };
        let message = world.outside().servers.receive(session.connection);
        match message {
            Some(Message::Echo(sent)) => {
                session.returned.echo(sent);
                self.prove(world);
            }
            Some(Message::Event {
                history,
                key,
                place,
                is_readable: true,
            }) => {
                world.core.invalidate(KEYS[key]);
                world.outside().ledger.promise(history, key, place);
            }
            Some(Message::Event {
                history,
                key,
                place,
                is_readable: false,
            }) => {
                self.flushed.push((history, key, place));
                self.is_flush_delayed = true;
                if thread_rng().gen_ratio(1, 3) {
                    self.flush(world);
                }
            }
            None => return false,
        }
        true
    }

    pub(super) fn connection(&self) -> Connection {
        self.session.as_ref().unwrap().connection
    }

    /// Lets everything arrive that is under way, and renews the proof.
    pub(super) fn settle(&mut self, world: &Arc<World>) {
        let mut is_proven = false;
        while !is_proven {
            let has_changed = {
                let mut outside = world.outside();
                let has_mismatch = std::mem::take(&mut outside.servers.trust.has_mismatch);
                let connection = self.session.as_ref().map(|session| session.connection);
                has_mismatch
                    || connection
                        .is_none_or(|connection| outside.servers.history(connection).is_none())
            };
            if has_changed {
                self.lose(world);
                self.connect(world);
            }
            // The thread that does it otherwise may not have run yet.
            world.revalidate(world.core.epoch());
            while self.receive(world) {}
            self.flush(world);
            let asked = world.outside().ledger.now;
            self.tick(world);
            while self.receive(world) {}
            while self
                .session
                .as_ref()
                .is_some_and(|session| !session.answers.is_empty())
            {
                self.answer(world);
            }
            is_proven = world.outside().status.proof > Some(asked);
        }
    }
}
