//! Everything after which a writer tries again.

use diesel::result::{DatabaseErrorKind, Error as DieselError};

use crate::metrics::RetryClass;
use crate::offsets;
use crate::record::Partition;

/// A failed attempt.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// No connection could be made.
    #[error("cannot connect to the database: {0}")]
    Connect(#[from] diesel::ConnectionError),
    /// The database has refused a statement, or the connection broke.
    #[error("{0}")]
    Query(#[from] DieselError),
    /// Another session holds the partition's row.
    #[error("{}", offsets::held_reason(*.0, .1))]
    RowLocked(Partition, Vec<offsets::Holder>),
    /// The brokers have not answered.
    #[error("Kafka: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    /// Anything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl Trouble {
    /// Whether the next statement for any partition would fail, too: the database is away, or takes no writes.
    pub(super) fn concerns_all_partitions(&self) -> bool {
        match self {
            Self::Connect(_) => true,
            Self::Query(error) => matches!(
                error,
                DieselError::DatabaseError(
                    DatabaseErrorKind::ClosedConnection
                        | DatabaseErrorKind::UnableToSendCommand
                        | DatabaseErrorKind::ReadOnlyTransaction,
                    _,
                ) | DieselError::BrokenTransactionManager
            ),
            Self::RowLocked(..) | Self::Kafka(_) | Self::Other(_) => false,
        }
    }

    pub(super) fn class(&self) -> RetryClass {
        match self {
            Self::Connect(_) => RetryClass::Connect,
            Self::Query(DieselError::DatabaseError(
                DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand,
                _,
            )) => RetryClass::LostConnection,
            Self::Query(_) | Self::RowLocked(..) => RetryClass::Query,
            Self::Kafka(_) | Self::Other(_) => RetryClass::Kafka,
        }
    }
}
