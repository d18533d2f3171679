//! Receives the events that writers emit, exactly as they are sent.

use diesel::PgConnection;
use diesel::connection::SimpleConnection;

use super::TestDatabase;
use crate::events::{self, OrderEvent};

/// The channel of our own notification, which arrives after everything that was committed before it.
const END: &str = "test_end";

/// A session that LISTENs and does nothing else.
#[expect(missing_debug_implementations, reason = "a connection has none")]
pub struct Notifications {
    connection: PgConnection,
}

impl Notifications {
    /// Starts to listen. Everything that is committed from now on will be received.
    pub fn listen(database: &TestDatabase) -> Self {
        let mut connection = database.connect();
        let listen = ["LISTEN ", events::CHANNEL, "; LISTEN ", END].concat();
        connection.batch_execute(&listen).unwrap();
        Self { connection }
    }

    /// The payloads that were committed since the last call. Notifications arrive in the order of the commits, so our own
    /// arrives last.
    pub fn payloads(&mut self) -> Vec<String> {
        let notify = ["NOTIFY ", END].concat();
        self.connection.batch_execute(&notify).unwrap();
        let mut payloads = Vec::new();
        loop {
            let received = self.connection.notifications_iter();
            for notification in received.map(Result::unwrap).collect::<Vec<_>>() {
                if notification.channel == END {
                    return payloads;
                }
                payloads.push(notification.payload);
            }
            self.connection.batch_execute("SELECT").unwrap();
        }
    }

    /// The events that were committed since the last call.
    pub fn events(&mut self) -> Vec<OrderEvent> {
        let payloads = self.payloads();
        payloads
            .iter()
            .map(|payload| events::parse(payload).unwrap())
            .collect()
    }
}
