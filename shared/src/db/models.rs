//! Rows as they are read, and what is inserted.

use chrono::{DateTime, Utc};
use compact_str::CompactString;
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::pg::{Pg, PgValue};
use diesel::prelude::*;
use diesel::sql_types::Text;

use super::schema::{order_items, orders};
use crate::order::{Delivery, Item, Order, OrderUid, Payment};

/// A text as [`Order`] has it: diesel's own way leads through an allocation for each.
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

/// A row of `orders`, without the columns that only operators look at.
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

/// An item as a composite value of an order's array of items; the fields are those of
/// [`ItemRecord`](super::orders::ItemRecord), in its order.
pub type ItemRow = (
    i64,
    ShortText,
    i64,
    ShortText,
    ShortText,
    i32,
    ShortText,
    i64,
    i64,
    ShortText,
    i64,
);

/// An order with the version under which it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionedOrder {
    /// The order.
    pub order: Order,
    /// Its version: equal versions are equal orders.
    pub version: i64,
}

impl From<(OrderRow, Vec<ItemRow>)> for VersionedOrder {
    fn from((row, items): (OrderRow, Vec<ItemRow>)) -> Self {
        let OrderRow {
            delivery, payment, ..
        } = row;
        let order = Order {
            order_uid: OrderUid::from_database(row.order_uid.into()),
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
            items: items.into_iter().map(Item::from).collect(),
            locale: row.locale.into(),
            internal_signature: row.internal_signature.into(),
            customer_id: row.customer_id.into(),
            delivery_service: row.delivery_service.into(),
            shardkey: row.shardkey.into(),
            sm_id: row.sm_id,
            date_created: row.date_created,
            oof_shard: row.oof_shard.into(),
        };
        Self {
            order,
            version: row.version,
        }
    }
}

impl From<ItemRow> for Item {
    fn from(row: ItemRow) -> Self {
        let (
            chrt_id,
            track_number,
            price,
            rid,
            name,
            sale,
            size,
            total_price,
            nm_id,
            brand,
            status,
        ) = row;
        Self {
            chrt_id,
            track_number: track_number.into(),
            price,
            rid: rid.into(),
            name: name.into(),
            sale,
            size: size.into(),
            total_price,
            nm_id,
            brand: brand.into(),
            status,
        }
    }
}

/// An order to be written. The columns left out are drawn by the database.
///
/// Flat and complete (no default for `None`), as diesel's typed COPY wants it; as a changeset it replaces every column
/// but the key.
#[derive(Clone, Copy, Debug, Insertable, AsChangeset)]
#[diesel(table_name = orders, primary_key(order_uid), treat_none_as_default_value = false, treat_none_as_null = true)]
pub struct NewOrder<'a> {
    order_uid: &'a str,
    track_number: &'a str,
    entry: &'a str,
    delivery_name: &'a str,
    delivery_phone: &'a str,
    delivery_zip: &'a str,
    delivery_city: &'a str,
    delivery_address: &'a str,
    delivery_region: &'a str,
    delivery_email: &'a str,
    payment_transaction: &'a str,
    payment_request_id: &'a str,
    payment_currency: &'a str,
    payment_provider: &'a str,
    payment_amount: i64,
    payment_dt: i64,
    payment_bank: &'a str,
    payment_delivery_cost: i64,
    payment_goods_total: i64,
    payment_custom_fee: i64,
    locale: &'a str,
    internal_signature: &'a str,
    customer_id: &'a str,
    delivery_service: &'a str,
    shardkey: &'a str,
    sm_id: i64,
    date_created: DateTime<Utc>,
    oof_shard: &'a str,
    source_partition: Option<i32>,
    source_offset: Option<i64>,
}

impl<'a> NewOrder<'a> {
    /// Takes an order over; `source` is the partition and the offset of its message, `None` for a PUT.
    pub fn new(order: &'a Order, source: Option<(i32, i64)>) -> Self {
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
            locale: &order.locale,
            internal_signature: &order.internal_signature,
            customer_id: &order.customer_id,
            delivery_service: &order.delivery_service,
            shardkey: &order.shardkey,
            sm_id: order.sm_id,
            date_created: order.date_created,
            oof_shard: &order.oof_shard,
            source_partition: source.map(|(partition, _)| partition),
            source_offset: source.map(|(_, offset)| offset),
        }
    }
}

/// An item to be written.
#[derive(Clone, Copy, Debug, Insertable)]
#[diesel(table_name = order_items, treat_none_as_default_value = false)]
pub struct NewOrderItem<'a> {
    order_uid: &'a str,
    position: i32,
    chrt_id: i64,
    track_number: &'a str,
    price: i64,
    rid: &'a str,
    name: &'a str,
    sale: i32,
    size: &'a str,
    total_price: i64,
    nm_id: i64,
    brand: &'a str,
    status: i64,
}

impl<'a> NewOrderItem<'a> {
    /// The items of an order, in its order.
    pub fn all_of(order: &'a Order) -> impl Iterator<Item = Self> {
        order.items.iter().zip(0..).map(|(item, position)| Self {
            order_uid: order.order_uid.as_str(),
            position,
            chrt_id: item.chrt_id,
            track_number: &item.track_number,
            price: item.price,
            rid: &item.rid,
            name: &item.name,
            sale: item.sale,
            size: &item.size,
            total_price: item.total_price,
            nm_id: item.nm_id,
            brand: &item.brand,
            status: item.status,
        })
    }
}
