//! The ingestor: from a Kafka topic into PostgreSQL, each order exactly once.
//!
//! Threads and what flows between them:
//! ```text
//!  Kafka -> poll thread ([`poller`]) --- batches, claims --> writer threads ([`writer`]) -> PostgreSQL
//!                 ^------------- committed, claimed, lost ---------'
//! ```
//! The modules, bottom-up. A module uses only modules above it in this table:
//!
//! | module | what it is for | uses |
//! |---|---|---|
//! | [`record`] | what a record is: its place, its reading, why it is refused, its headers | |
//! | [`periodic`] | threads that do something again and again until shutdown | |
//! | [`dead_letters`] | the table of refused messages | [`record`] |
//! | [`witnesses`] | records that were read, by which a log is recognised | [`record`], [`dead_letters`] |
//! | [`guard`] | whether a message that may have been read before may write its order | [`record`] |
//! | [`ledger`] | the ledger of removed orders: which messages are too old to bring one back | [`record`] |
//! | [`config`] | the command line and the environment | [`record`], [`dead_letters`] |
//! | [`database`] | a thread's connection to PostgreSQL, and the schema at start | [`config`] |
//! | [`history`] | the database's row of `service_history`: made anew after a restore or a failover | |
//! | [`batch`] | records into batches, without I/O | [`record`], [`dead_letters`], [`witnesses`], [`guard`] |
//! | [`failpoints`] | where tests stop, kill and break the program; not in releases | [`record`], [`dead_letters`], [`batch`] |
//! | [`metrics`] | what is counted | [`record`], [`dead_letters`], [`batch`] |
//! | [`kafka`] | the Kafka clients: the group's consumer with its rebalances, and the probe | [`record`], [`witnesses`], [`config`], [`failpoints`] |
//! | [`offsets`] | the table of offsets: claims, the fence, incidents, what operators may change | [`record`], [`witnesses`], [`guard`], [`batch`], [`kafka`] |
//! | [`board`] | the life of every assigned partition, and the health of the process | [`record`], [`witnesses`], [`kafka`], [`offsets`] |
//! | [`writer`] | one batch, one transaction; claims; isolation of a row that a constraint rejects | [`record`], [`dead_letters`], [`witnesses`], [`guard`], [`ledger`], [`database`], [`batch`], [`failpoints`], [`metrics`], [`kafka`], [`offsets`], [`board`] |
//! | [`poller`] | the poll thread: follows the group, fills batches, limits memory | [`record`], [`dead_letters`], [`config`], [`batch`], [`failpoints`], [`metrics`], [`kafka`], [`offsets`], [`board`], [`writer`] |
//! | [`relay`] | publishes dead letters to another topic | [`record`], [`periodic`], [`dead_letters`], [`config`], [`database`], [`metrics`], [`kafka`], [`board`] |
//! | [`replay`] | an operator's decision on a dead letter | [`record`], [`dead_letters`], [`guard`], [`offsets`], [`writer`] |
//! | [`retention`] | removes the bytes of old dead letters | [`periodic`], [`dead_letters`], [`database`], [`metrics`] |
//! | [`deletion`] | deletes many orders in small transactions | |
//! | [`erase`] | erases orders and every copy of them in the database | [`dead_letters`], [`ledger`], [`deletion`] |
//! | [`import`] | stores the orders of a file like those of a partition | [`record`], [`database`], [`batch`], [`offsets`], [`writer`] |
//! | [`purge`] | removes what is older than an age | [`deletion`] |
//! | [`watch`] | the lag, and whether the topic is still the one that was read | [`record`], [`periodic`], [`witnesses`], [`database`], [`history`], [`metrics`], [`kafka`], [`offsets`], [`board`] |
//! | [`ops_server`] | the operators' port | [`metrics`], [`board`] |
//! | [`daemon`] | starts and stops all of the above | [`record`], [`config`], [`database`], [`history`], [`metrics`], [`kafka`], [`board`], [`writer`], [`poller`], [`relay`], [`retention`], [`watch`], [`ops_server`] |
//! | [`doctor`] | checks of what the daemon needs: machine, database, topic, group | [`record`], [`config`], [`kafka`], [`offsets`], [`writer`] |
//! | [`commands`] | what the command line can ask for | [`record`], [`dead_letters`], [`config`], [`database`], [`history`], [`kafka`], [`offsets`], [`replay`], [`erase`], [`import`], [`purge`], [`daemon`], [`doctor`] |

pub mod batch;
pub mod board;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod database;
pub mod dead_letters;
pub mod deletion;
pub mod doctor;
pub mod erase;
pub mod failpoints;
pub mod guard;
pub mod history;
pub mod import;
pub mod kafka;
pub mod ledger;
pub mod metrics;
pub mod offsets;
pub mod ops_server;
pub mod periodic;
pub mod poller;
pub mod purge;
pub mod record;
pub mod relay;
pub mod replay;
pub mod retention;
pub mod watch;
pub mod witnesses;
pub mod writer;

pub use daemon::run;
