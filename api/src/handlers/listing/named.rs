//! `order_uids=a,b,c`: the named orders in the order of their names, through the cache.
//!
//! The live feed names orders, and this fetches them. Each is read as `GET /order/{order_uid}` reads it, so no answer is older
//! than an event that named the order.

use std::future::ready;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use compact_str::CompactString;
use futures_util::future::Either;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use shared::order::OrderUid;
use warp::reply::Response;

use super::body::PageBody;
use crate::app::App;
use crate::cache::ReadyOrder;
use crate::cache::core::Demand;
use crate::http::problem::ApiError;
use crate::http::request::{Head, named_orders};
use crate::repository::{OrderSummary, View};

/// How many orders of one request are fetched at the same time. Their loads share statements. While the cache is blind, each
/// waits for a connection of its own, and should leave the pool to others. It also bounds what is fetched but does not fit.
const AT_A_TIME: usize = 8;

/// A request for named orders.
#[derive(Debug)]
pub(super) struct NamedRequest {
    /// The ids, each once.
    uids: Vec<OrderUid>,
    view: View,
    demand: Demand,
}

impl NamedRequest {
    /// Reads the ids.
    ///
    /// # Errors
    /// Returns `InvalidParameter` unless there are 1 to 100 valid ids.
    pub(super) fn parse(value: &str, view: View, demand: Demand) -> Result<Self, ApiError> {
        let uids = named_orders(value)?;
        Ok(Self { uids, view, demand })
    }
}

/// What follows the orders.
#[derive(Serialize)]
struct NamedEnd<'a> {
    /// The ids without an order.
    missing: Vec<&'a OrderUid>,
    /// The ids that were not looked at, because the body was full.
    remaining: &'a [OrderUid],
}

/// Answers with the named orders, or as many of them as fit.
pub(super) async fn list_named(
    app: &Arc<App>,
    head: &Head,
    request: &NamedRequest,
) -> Result<Response, ApiError> {
    let NamedRequest { uids, view, demand } = request;
    let fetching = stream::iter(uids.clone());
    let fetching = fetching.map(|uid| match app.cache.get(uid.as_str(), *demand) {
        Either::Left(cached) => Either::Left(ready(Ok(cached))),
        Either::Right(loading) => Either::Right(loading),
    });
    let mut fetching = fetching.buffered(AT_A_TIME);
    let mut body = PageBody::new(*view);
    let mut end = NamedEnd {
        missing: Vec::new(),
        remaining: &[],
    };
    for (index, uid) in uids.iter().enumerate() {
        let Some(fetched) = fetching.try_next().await? else {
            break;
        };
        let Some(order) = fetched.order else {
            end.missing.push(uid);
            continue;
        };
        let added = match view {
            View::Whole => body.add_text(order.revision, order.json()),
            View::Summary => body.add(order.revision, &summary(&order)?),
        };
        if added.is_break() {
            end.remaining = &uids[index..];
            break;
        }
    }
    Ok(body.response(head, &end))
}

/// Makes the summary of a ready-made answer. Its items are skipped and counted.
fn summary(order: &ReadyOrder) -> Result<OrderSummary, ApiError> {
    #[derive(Deserialize)]
    struct Text {
        order_uid: CompactString,
        track_number: CompactString,
        customer_id: CompactString,
        date_created: DateTime<Utc>,
        payment: Payment,
        items: Vec<IgnoredAny>,
    }
    #[derive(Deserialize)]
    struct Payment {
        amount: i64,
        currency: CompactString,
    }
    let text: Text = serde_json::from_slice(order.json()).map_err(|error| {
        tracing::error!("a ready-made order cannot be read: {error}");
        ApiError::Internal
    })?;
    Ok(OrderSummary {
        order_uid: text.order_uid,
        track_number: text.track_number,
        customer_id: text.customer_id,
        date_created: text.date_created,
        items_count: text.items.len(),
        amount: text.payment.amount,
        currency: text.payment.currency,
        etag: order.revision.etag(),
    })
}
