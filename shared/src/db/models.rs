//! Rows: how orders are read, and how they are inserted.

use std::io::Write;

use chrono::{DateTime, Utc};
use compact_str::CompactString;
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::prelude::*;
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types::{Jsonb, Text};
use serde::{Serialize, Serializer};

use super::schema::orders;
use crate::order::{Delivery, Item, Order, OrderUid, Payment};

/// The first byte of a jsonb value in the binary format. The JSON text follows it (PostgreSQL's `jsonb_recv` and
/// `jsonb_send`).
const JSONB_VERSION: u8 = 1;

/// A text of an [`Order`]. Reading a `String` with diesel would allocate for each text.
#[derive(Debug, FromSqlRow)]
#[diesel(sql_type = Text)]
pub struct ShortText(CompactString);

impl FromSql<Text, Pg> for ShortText {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        Ok(Self(CompactString::from_utf8(value.as_bytes())?))
    }
}

impl From<ShortText> for CompactString {
    fn from(text: ShortText) -> Self {
        text.0
    }
}

/// The items of an order as they are read: the column's JSON text is parsed straight into items.
///
/// Items that cannot be parsed do not fail the statement. The conversion of their [`OrderRow`] then names the order.
#[derive(Debug, FromSqlRow)]
#[diesel(sql_type = Jsonb)]
pub struct StoredItems(serde_json::Result<Vec<Item>>);

impl FromSql<Jsonb, Pg> for StoredItems {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        match value.as_bytes() {
            [JSONB_VERSION, json @ ..] => Ok(Self(serde_json::from_slice(json))),
            _ => Err("the server sent jsonb in a format that this program does not know".into()),
        }
    }
}

/// The items of an order as they are written: they are serialised straight into the statement's buffer.
#[derive(Clone, Copy, Debug, AsExpression)]
#[diesel(sql_type = Jsonb)]
pub struct ItemsToStore<'a>(&'a [Item]);

impl ToSql<Jsonb, Pg> for ItemsToStore<'_> {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        out.write_all(&[JSONB_VERSION])?;
        let mut serializer = serde_json::Serializer::new(out);
        serializer.collect_seq(self.0.iter().map(ItemToStore::from))?;
        Ok(IsNull::No)
    }
}

/// An item with its fields in the order in which jsonb stores keys: shorter keys first, then by bytes.
///
/// PostgreSQL sorts the keys of each object that it receives. Sorting is cheap if they are in order already.
#[derive(Serialize)]
struct ItemToStore<'a> {
    rid: &'a str,
    name: &'a str,
    sale: i32,
    size: &'a str,
    brand: &'a str,
    nm_id: i64,
    price: i64,
    status: i64,
    chrt_id: i64,
    total_price: i64,
    track_number: &'a str,
}

impl<'a> From<&'a Item> for ItemToStore<'a> {
    fn from(item: &'a Item) -> Self {
        Self {
            rid: &item.rid,
            name: &item.name,
            sale: item.sale,
            size: &item.size,
            brand: &item.brand,
            nm_id: item.nm_id,
            price: item.price,
            status: item.status,
            chrt_id: item.chrt_id,
            total_price: item.total_price,
            track_number: &item.track_number,
        }
    }
}

/// A row of `orders`, without the columns that only operators read.
#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = orders, check_for_backend(diesel::pg::Pg))]
pub struct OrderRow {
    order_uid: ShortText,
    track_number: ShortText,
    entry: ShortText,
    #[diesel(embed)]
    delivery: DeliveryColumns,
    #[diesel(embed)]
    payment: PaymentColumns,
    items: StoredItems,
    locale: ShortText,
    internal_signature: ShortText,
    customer_id: ShortText,
    delivery_service: ShortText,
    shardkey: ShortText,
    sm_id: i64,
    date_created: DateTime<Utc>,
    oof_shard: ShortText,
    version: i64,
}

/// The delivery of an order, in its row.
#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = orders, check_for_backend(diesel::pg::Pg))]
pub struct DeliveryColumns {
    delivery_name: ShortText,
    delivery_phone: ShortText,
    delivery_zip: ShortText,
    delivery_city: ShortText,
    delivery_address: ShortText,
    delivery_region: ShortText,
    delivery_email: ShortText,
}

/// The payment of an order, in its row.
#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = orders, check_for_backend(diesel::pg::Pg))]
pub struct PaymentColumns {
    payment_transaction: ShortText,
    payment_request_id: ShortText,
    payment_currency: ShortText,
    payment_provider: ShortText,
    payment_amount: i64,
    payment_dt: i64,
    payment_bank: ShortText,
    payment_delivery_cost: i64,
    payment_goods_total: i64,
    payment_custom_fee: i64,
}

/// An order with the version under which it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionedOrder {
    /// The order.
    pub order: Order,
    /// Its version. Orders with the same uid and the same version are equal.
    pub version: i64,
}

/// An order whose items cannot be decoded: a writer that bypassed the checks of the database has stored them.
#[derive(Debug, thiserror::Error)]
#[error("order {order_uid} cannot be read: {cause}")]
pub struct UnreadableOrder {
    /// Which order it is.
    pub order_uid: OrderUid,
    cause: serde_json::Error,
}

impl TryFrom<OrderRow> for VersionedOrder {
    type Error = UnreadableOrder;

    fn try_from(row: OrderRow) -> Result<Self, Self::Error> {
        let OrderRow {
            delivery, payment, ..
        } = row;
        let order_uid = OrderUid::from_database(row.order_uid.into());
        let items = match row.items.0 {
            Ok(items) => items,
            Err(cause) => return Err(UnreadableOrder { order_uid, cause }),
        };
        let order = Order {
            order_uid,
            track_number: row.track_number.into(),
            entry: row.entry.into(),
            delivery: Delivery {
                name: delivery.delivery_name.into(),
                phone: delivery.delivery_phone.into(),
                zip: delivery.delivery_zip.into(),
                city: delivery.delivery_city.into(),
                address: delivery.delivery_address.into(),
                region: delivery.delivery_region.into(),
                email: delivery.delivery_email.into(),
            },
            payment: Payment {
                transaction: payment.payment_transaction.into(),
                request_id: payment.payment_request_id.into(),
                currency: payment.payment_currency.into(),
                provider: payment.payment_provider.into(),
                amount: payment.payment_amount,
                payment_dt: payment.payment_dt,
                bank: payment.payment_bank.into(),
                delivery_cost: payment.payment_delivery_cost,
                goods_total: payment.payment_goods_total,
                custom_fee: payment.payment_custom_fee,
            },
            items,
            locale: row.locale.into(),
            internal_signature: row.internal_signature.into(),
            customer_id: row.customer_id.into(),
            delivery_service: row.delivery_service.into(),
            shardkey: row.shardkey.into(),
            sm_id: row.sm_id,
            date_created: row.date_created,
            oof_shard: row.oof_shard.into(),
        };
        Ok(Self {
            order,
            version: row.version,
        })
    }
}

/// The message that wrote an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its partition.
    pub partition: i32,
    /// The partition's incarnation. Offsets of different incarnations cannot be compared.
    pub incarnation: i32,
    /// Its offset.
    pub offset: i64,
}

/// An order to be written. The database fills in the other columns.
///
/// It is flat, and `None` means NULL and not a default, because diesel's typed COPY requires both.
#[derive(Clone, Copy, Debug, Insertable)]
#[diesel(table_name = orders, treat_none_as_default_value = false)]
pub struct NewOrder<'a> {
    pub(super) order_uid: &'a str,
    pub(super) track_number: &'a str,
    pub(super) entry: &'a str,
    pub(super) delivery_name: &'a str,
    pub(super) delivery_phone: &'a str,
    pub(super) delivery_zip: &'a str,
    pub(super) delivery_city: &'a str,
    pub(super) delivery_address: &'a str,
    pub(super) delivery_region: &'a str,
    pub(super) delivery_email: &'a str,
    pub(super) payment_transaction: &'a str,
    pub(super) payment_request_id: &'a str,
    pub(super) payment_currency: &'a str,
    pub(super) payment_provider: &'a str,
    pub(super) payment_amount: i64,
    pub(super) payment_dt: i64,
    pub(super) payment_bank: &'a str,
    pub(super) payment_delivery_cost: i64,
    pub(super) payment_goods_total: i64,
    pub(super) payment_custom_fee: i64,
    pub(super) items: ItemsToStore<'a>,
    pub(super) locale: &'a str,
    pub(super) internal_signature: &'a str,
    pub(super) customer_id: &'a str,
    pub(super) delivery_service: &'a str,
    pub(super) shardkey: &'a str,
    pub(super) sm_id: i64,
    pub(super) date_created: DateTime<Utc>,
    pub(super) oof_shard: &'a str,
    pub(super) source_partition: Option<i32>,
    pub(super) source_offset: Option<i64>,
    pub(super) source_incarnation: Option<i32>,
}

impl<'a> NewOrder<'a> {
    /// Takes the fields of an order. `source` is its message; it is `None` for a write by the api.
    pub fn new(order: &'a Order, source: Option<Source>) -> Self {
        let Order {
            delivery, payment, ..
        } = order;
        Self {
            order_uid: order.order_uid.as_str(),
            track_number: &order.track_number,
            entry: &order.entry,
            delivery_name: &delivery.name,
            delivery_phone: &delivery.phone,
            delivery_zip: &delivery.zip,
            delivery_city: &delivery.city,
            delivery_address: &delivery.address,
            delivery_region: &delivery.region,
            delivery_email: &delivery.email,
            payment_transaction: &payment.transaction,
            payment_request_id: &payment.request_id,
            payment_currency: &payment.currency,
            payment_provider: &payment.provider,
            payment_amount: payment.amount,
            payment_dt: payment.payment_dt,
            payment_bank: &payment.bank,
            payment_delivery_cost: payment.delivery_cost,
            payment_goods_total: payment.goods_total,
            payment_custom_fee: payment.custom_fee,
            items: ItemsToStore(&order.items),
            locale: &order.locale,
            internal_signature: &order.internal_signature,
            customer_id: &order.customer_id,
            delivery_service: &order.delivery_service,
            shardkey: &order.shardkey,
            sm_id: order.sm_id,
            date_created: order.date_created,
            oof_shard: &order.oof_shard,
            source_partition: source.map(|source| source.partition),
            source_offset: source.map(|source| source.offset),
            source_incarnation: source.map(|source| source.incarnation),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::model_json;

    use super::*;

    #[test]
    fn items_are_written_with_their_keys_in_the_order_of_jsonb() {
        let order = Order::decode(model_json().as_bytes()).unwrap();
        let item = ItemToStore::from(&order.items[0]);
        let serde_json::Value::Object(object) = serde_json::to_value(&item).unwrap() else {
            panic!("an item is an object");
        };
        let mut keys: Vec<&String> = object.keys().collect();
        keys.sort_by_key(|key| (key.len(), *key));
        let text = serde_json::to_string(&item).unwrap();
        let places: Vec<_> = keys
            .iter()
            .map(|key| text.find(&format!("\"{key}\":")))
            .collect();
        assert!(
            places.is_sorted() && places.iter().all(Option::is_some),
            "{text}"
        );
    }
}
