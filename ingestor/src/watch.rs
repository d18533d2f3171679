//! Threads that look at the servers from outside: at the topic ([`topic`]) and at the database ([`database`]).
//!
//! The brokers' and the database's answers may take seconds, which neither the poll thread nor a writer can wait.

pub mod database;
pub mod topic;
