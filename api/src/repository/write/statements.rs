//! The statements of the writes.

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use shared::db::models::{NewOrder, OrderRow};
use shared::db::orders::UpsertOrders;
use shared::db::schema::orders;
use shared::events::{self, Operation};
use shared::order::Order;
use shared::traces::leaf_async;

/// Says once more that this transaction emits its own events: a pooler may have given it a session without our settings. Then
/// a trigger would draw another version than the one that the client is told.
const EMITS: &str = "set_config('orders.emits', 'on', true)";

/// Locks the row, and returns the version that it has; `None` if there is no such order. Says [`EMITS`] if there is one.
pub(super) async fn lock_order(
    connection: &mut AsyncPgConnection,
    uid: &str,
) -> QueryResult<Option<i64>> {
    let query = orders::table
        .find(uid)
        .select((orders::version, sql::<Text>(EMITS)));
    let locked = query.for_update().first::<(i64, String)>(connection);
    let locked = leaf_async("lock the row", async { locked.await.optional() });
    Ok(locked.await?.map(|(version, _)| version))
}

/// Does the same, and returns the whole order.
pub(super) async fn lock_whole_order(
    connection: &mut AsyncPgConnection,
    uid: &str,
) -> QueryResult<Option<OrderRow>> {
    let query = orders::table.find(uid);
    let query = query.select((OrderRow::as_select(), sql::<Text>(EMITS)));
    let locked = query.for_update().first::<(OrderRow, String)>(connection);
    let locked = leaf_async("lock the row", async { locked.await.optional() });
    Ok(locked.await?.map(|(row, _)| row))
}

/// Tells the caches, when the transaction commits.
pub(super) async fn notify(
    connection: &mut AsyncPgConnection,
    operation: Operation,
    uid: &str,
) -> QueryResult<()> {
    let notify = events::notify(operation, [uid]);
    let notified = leaf_async("notify the caches", notify.execute(connection));
    notified.await.map(|_| ())
}

/// Replaces an order that is locked. Returns its new version.
pub(super) async fn replace(connection: &mut AsyncPgConnection, order: &Order) -> QueryResult<i64> {
    let upsert = UpsertOrders::new(&[NewOrder::new(order, None)]);
    leaf_async("replace the row", upsert.get_result(connection)).await
}

/// Inserts an order. Returns its version, or `None` if there is such an order already.
pub(super) async fn insert(
    connection: &mut AsyncPgConnection,
    order: &Order,
) -> QueryResult<Option<i64>> {
    // `lock_order` found no row, so it has not said this.
    let emits = diesel::select(sql::<Text>(EMITS));
    emits.execute(connection).await?;
    let insert = diesel::insert_into(orders::table)
        .values(NewOrder::new(order, None))
        .on_conflict(orders::order_uid)
        .do_nothing()
        .returning(orders::version);
    let inserted = insert.get_result(connection);
    leaf_async("insert the row", async { inserted.await.optional() }).await
}
