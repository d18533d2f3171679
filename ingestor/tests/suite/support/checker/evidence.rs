//! What the database can tell: triggers write down every write in the transaction that makes it.

use std::collections::{BTreeMap, HashMap};

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Integer, Text};
use shared::db::models::{OrderRow, VersionedOrder};
use shared::db::schema::{consumer_offsets, orders};
use shared::order::Order;
use shared::testing::TestDatabase;

use super::Place;

/// Numbers are drawn while the written row is locked, so those of one order and of one partition rise as they were
/// committed.
pub const INSTALL: &str = "
    CREATE TABLE audit (id bigserial, uid text, signature text, partition int, \"offset\" bigint, txid bigint DEFAULT txid_current());
    CREATE FUNCTION audit_order() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO audit (uid, signature, partition, \"offset\")
        VALUES (NEW.order_uid, NEW.internal_signature, NEW.source_partition, NEW.source_offset);
        RETURN NULL;
    END $$;
    CREATE TRIGGER audit AFTER INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION audit_order();

    CREATE TABLE audit_offsets (id bigserial, partition int, from_offset bigint, to_offset bigint, txid bigint DEFAULT txid_current());
    CREATE FUNCTION audit_offset() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO audit_offsets (partition, from_offset, to_offset)
        VALUES (NEW.partition, OLD.next_offset, NEW.next_offset);
        RETURN NULL;
    END $$;
    CREATE TRIGGER audit AFTER UPDATE ON consumer_offsets FOR EACH ROW WHEN (OLD.next_offset <> NEW.next_offset)
        EXECUTE FUNCTION audit_offset();

    CREATE TABLE audit_letters (partition int, \"offset\" bigint, payload bytea, txid bigint DEFAULT txid_current());
    CREATE FUNCTION audit_letter() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO audit_letters (partition, \"offset\", payload) VALUES (NEW.partition, NEW.\"offset\", NEW.payload);
        RETURN NULL;
    END $$;
    CREATE TRIGGER audit AFTER INSERT ON dead_letters FOR EACH ROW EXECUTE FUNCTION audit_letter();";

/// A write of an order's row.
#[derive(Clone, Debug)]
pub struct Write {
    pub uid: String,
    /// The order's `internal_signature`, which tells one message of it from another.
    pub signature: String,
    pub place: Place,
    pub txid: i64,
}

/// A move of a partition's offset.
#[derive(Clone, Debug)]
pub struct Advance {
    pub partition: i32,
    pub from: i64,
    pub to: i64,
    pub txid: i64,
}

/// A dead letter.
#[derive(Clone, Debug)]
pub struct Letter {
    pub place: Place,
    pub payload: Vec<u8>,
    pub txid: i64,
}

#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// In the order in which they happened.
    pub writes: Vec<Write>,
    /// In the order in which they happened.
    pub advances: Vec<Advance>,
    pub letters: Vec<Letter>,
    /// What readers get.
    pub orders: HashMap<String, Order>,
    pub next_offsets: BTreeMap<i32, i64>,
}

impl Evidence {
    /// Reads everything, as it was at one moment.
    pub fn collect(database: &TestDatabase) -> Self {
        let mut connection = database.connect();
        let mut transaction = connection.build_transaction().repeatable_read();
        transaction.run(Self::read).unwrap()
    }

    fn read(connection: &mut PgConnection) -> QueryResult<Self> {
        let rows: Vec<OrderRow> = orders::table
            .select(OrderRow::as_select())
            .load(connection)?;
        let orders = rows
            .into_iter()
            .map(|row| VersionedOrder::try_from(row).unwrap().order);
        let next_offsets: Vec<(i32, i64)> = consumer_offsets::table
            .select((consumer_offsets::partition, consumer_offsets::next_offset))
            .load(connection)?;
        Ok(Self {
            writes: writes(connection)?,
            advances: advances(connection)?,
            letters: letters(connection)?,
            orders: orders
                .map(|order| (order.order_uid.to_string(), order))
                .collect(),
            next_offsets: next_offsets.into_iter().collect(),
        })
    }
}

fn writes(connection: &mut PgConnection) -> QueryResult<Vec<Write>> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        uid: String,
        #[diesel(sql_type = Text)]
        signature: String,
        #[diesel(sql_type = Integer)]
        partition: i32,
        #[diesel(sql_type = BigInt)]
        offset: i64,
        #[diesel(sql_type = BigInt)]
        txid: i64,
    }
    let rows: Vec<Row> = diesel::sql_query("SELECT * FROM audit ORDER BY id").load(connection)?;
    let write = |row: Row| Write {
        uid: row.uid,
        signature: row.signature,
        place: (row.partition, row.offset),
        txid: row.txid,
    };
    Ok(rows.into_iter().map(write).collect())
}

fn advances(connection: &mut PgConnection) -> QueryResult<Vec<Advance>> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Integer)]
        partition: i32,
        #[diesel(sql_type = BigInt)]
        from_offset: i64,
        #[diesel(sql_type = BigInt)]
        to_offset: i64,
        #[diesel(sql_type = BigInt)]
        txid: i64,
    }
    let rows: Vec<Row> =
        diesel::sql_query("SELECT * FROM audit_offsets ORDER BY id").load(connection)?;
    let advance = |row: Row| Advance {
        partition: row.partition,
        from: row.from_offset,
        to: row.to_offset,
        txid: row.txid,
    };
    Ok(rows.into_iter().map(advance).collect())
}

fn letters(connection: &mut PgConnection) -> QueryResult<Vec<Letter>> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Integer)]
        partition: i32,
        #[diesel(sql_type = BigInt)]
        offset: i64,
        #[diesel(sql_type = Binary)]
        payload: Vec<u8>,
        #[diesel(sql_type = BigInt)]
        txid: i64,
    }
    let rows: Vec<Row> = diesel::sql_query("SELECT * FROM audit_letters").load(connection)?;
    let letter = |row: Row| Letter {
        place: (row.partition, row.offset),
        payload: row.payload,
        txid: row.txid,
    };
    Ok(rows.into_iter().map(letter).collect())
}
