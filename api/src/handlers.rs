//! What each route does. The table in `routes.rs` says which handler answers which request.
//!
//! Path, method and authorization were checked before a handler runs. Each handler makes the remaining checks in the
//! same order: media type, size, JSON, order, order ids, existence, precondition.

pub mod cache;
pub mod events;
pub mod health;
pub mod listing;
pub mod orders;
pub mod web;
pub mod writing;

use std::sync::Arc;

use shared::order::OrderUid;
use warp::reply::Response;

use crate::app::App;
use crate::http::authority::Grant;
use crate::http::envelope::Answering;
use crate::http::problem::ApiError;
use crate::http::request::{Body, Head};

/// What a handler returns.
pub type Answer = Answering<Result<Response, ApiError>>;

/// A request and what is needed to answer it.
pub struct Call {
    /// The process's state.
    pub app: Arc<App>,
    /// The order id in the path, if the route has one.
    pub order_uid: Option<OrderUid>,
    /// The name of a file of the page in the path, if the route has one.
    pub file: Option<String>,
    /// Why the request is allowed.
    pub grant: Grant,
    /// The request's head.
    pub head: Head,
    /// The request's body.
    pub body: Body,
}

impl Call {
    /// Returns the order id in the path.
    ///
    /// # Errors
    /// Returns `InvalidOrderUid` if the path of the route has none.
    fn order_uid(&self) -> Result<&OrderUid, ApiError> {
        self.order_uid.as_ref().ok_or(ApiError::InvalidOrderUid)
    }
}
