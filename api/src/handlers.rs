//! What each route does. Each handler makes its checks in one order: path,
//! method, authority, media type, size, JSON, order, uids, existence, precondition.

pub mod cache;
pub mod events;
pub mod health;
pub mod listing;
pub mod orders;
pub mod web;
