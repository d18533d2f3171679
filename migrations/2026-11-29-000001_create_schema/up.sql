-- The whole schema of the first release.
--
-- One order is one row, and the row holds the whole order: delivery and payment are columns, and the items are one jsonb
-- value. So an order can be neither torn nor incomplete. One statement writes it, and one row answers a read. A table of
-- items halved the speed of COPY, because each item cost an index entry and a check of its foreign key. Items are never
-- read without their order.
--
-- The CHECKs cover lengths and ranges only, and are looser than the rules of the programs. The programs validate everything
-- before they write, and regular expressions on every text would cost a third of COPY's speed.

-- The versions of all orders come from this sequence. It is never reset, so a version is unique for ever. Two equal versions
-- therefore mean equal content, and caches and ETags rely on that. CACHE 1 makes the versions rise across sessions.
CREATE SEQUENCE order_version_seq AS bigint CACHE 1;

-- COLLATE "C" sorts by bytes, as Rust does, so all writers lock rows in the same order. Searches for a prefix can use the
-- index, and an upgrade of the C library cannot break the index.
CREATE TABLE orders (
    order_uid             text COLLATE "C" PRIMARY KEY CHECK (char_length(order_uid) BETWEEN 1 AND 64),
    track_number          text COLLATE "C" NOT NULL CHECK (char_length(track_number) BETWEEN 1 AND 256),
    entry                 text        NOT NULL CHECK (char_length(entry) <= 256),
    delivery_name         text        NOT NULL CHECK (char_length(delivery_name) <= 256),
    delivery_phone        text        NOT NULL CHECK (char_length(delivery_phone) <= 256),
    delivery_zip          text        NOT NULL CHECK (char_length(delivery_zip) <= 256),
    delivery_city         text        NOT NULL CHECK (char_length(delivery_city) <= 256),
    delivery_address      text        NOT NULL CHECK (char_length(delivery_address) <= 512),
    delivery_region       text        NOT NULL CHECK (char_length(delivery_region) <= 256),
    delivery_email        text        NOT NULL CHECK (char_length(delivery_email) <= 256),
    payment_transaction   text        NOT NULL CHECK (char_length(payment_transaction) BETWEEN 1 AND 256),
    payment_request_id    text        NOT NULL CHECK (char_length(payment_request_id) <= 256),
    payment_currency      text        NOT NULL CHECK (char_length(payment_currency) BETWEEN 1 AND 256),
    payment_provider      text        NOT NULL CHECK (char_length(payment_provider) BETWEEN 1 AND 256),
    payment_amount        bigint      NOT NULL CHECK (payment_amount BETWEEN 0 AND 9007199254740991),
    payment_dt            bigint      NOT NULL CHECK (payment_dt BETWEEN 0 AND 4102444800),
    payment_bank          text        NOT NULL CHECK (char_length(payment_bank) <= 256),
    payment_delivery_cost bigint      NOT NULL CHECK (payment_delivery_cost BETWEEN 0 AND 9007199254740991),
    payment_goods_total   bigint      NOT NULL CHECK (payment_goods_total BETWEEN 0 AND 9007199254740991),
    payment_custom_fee    bigint      NOT NULL CHECK (payment_custom_fee BETWEEN 0 AND 9007199254740991),
    items                 jsonb       NOT NULL,
    locale                text        NOT NULL CHECK (char_length(locale) <= 256),
    internal_signature    text        NOT NULL CHECK (char_length(internal_signature) <= 256),
    customer_id           text COLLATE "C" NOT NULL CHECK (char_length(customer_id) BETWEEN 1 AND 256),
    delivery_service      text        NOT NULL CHECK (char_length(delivery_service) <= 256),
    shardkey              text        NOT NULL CHECK (char_length(shardkey) <= 256),
    sm_id                 bigint      NOT NULL CHECK (sm_id BETWEEN 0 AND 9007199254740991),
    date_created          timestamptz NOT NULL CHECK (date_created >= '0001-01-01Z' AND date_created < '10000-01-01Z'),
    oof_shard             text        NOT NULL CHECK (char_length(oof_shard) <= 256),
    version               bigint      NOT NULL DEFAULT nextval('order_version_seq'),
    created_at            timestamptz NOT NULL DEFAULT now(),
    updated_at            timestamptz NOT NULL DEFAULT now(),
    source_partition      integer,
    source_offset         bigint,
    source_incarnation    integer,
    -- A CASE, because jsonb_array_length raises an error of its own if the value is not an array.
    CONSTRAINT orders_items_check CHECK (
        CASE jsonb_typeof(items) WHEN 'array' THEN jsonb_array_length(items) BETWEEN 1 AND 1000 ELSE false END)
);

-- PostgreSQL compresses the items of rows above 2 kB, which have about 8 items or more. lz4 takes half the time of pglz, but a
-- server can be built without lz4.
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)) THEN
        ALTER TABLE orders ALTER COLUMN items SET COMPRESSION lz4;
    END IF;
END $$;

-- Clients walk the list newest first, page by page: all orders, those of a customer, or those with a track number. The
-- indexes are ascending and are walked backwards. New orders then go to the right end of the index, where PostgreSQL fills
-- the pages. At the left end every split would leave two half-full pages for ever. Measured with a million orders: 50 MB
-- instead of 89 MB.
CREATE INDEX orders_newest_idx ON orders (date_created, order_uid);
CREATE INDEX orders_customer_idx ON orders (customer_id, date_created, order_uid);
CREATE INDEX orders_track_number_idx ON orders (track_number, date_created, order_uid);

-- These views give every entity of the business a name in SQL.
CREATE VIEW deliveries AS
    SELECT order_uid, delivery_name AS name, delivery_phone AS phone, delivery_zip AS zip, delivery_city AS city,
           delivery_address AS address, delivery_region AS region, delivery_email AS email
      FROM orders;

CREATE VIEW payments AS
    SELECT order_uid, payment_transaction AS transaction, payment_request_id AS request_id,
           payment_currency AS currency, payment_provider AS provider, payment_amount AS amount, payment_dt,
           payment_bank AS bank, payment_delivery_cost AS delivery_cost, payment_goods_total AS goods_total,
           payment_custom_fee AS custom_fee
      FROM orders;

CREATE VIEW order_items AS
    SELECT order_uid, (ordinality - 1)::integer AS position, chrt_id, item.track_number, price, rid, name, sale, size,
           total_price, nm_id, brand, status
      FROM orders,
           ROWS FROM (jsonb_to_recordset(items) AS (
               chrt_id bigint, track_number text, price bigint, rid text, name text, sale integer, size text,
               total_price bigint, nm_id bigint, brand text, status bigint
           )) WITH ORDINALITY AS item;

COMMENT ON TABLE orders IS 'One row per order, written by the ingestor and by the api''s PUT and DELETE';
COMMENT ON COLUMN orders.order_uid IS 'The producer''s id of the order, [A-Za-z0-9][A-Za-z0-9._-]{0,63}';
COMMENT ON COLUMN orders.payment_amount IS 'As the producer sent it; no amount, price or fee in this database has a unit';
COMMENT ON COLUMN orders.payment_dt IS 'Seconds since 1970; 0 if the producer did not say';
COMMENT ON COLUMN orders.items IS 'Array of 1 to 1000 objects, each with every field of the view order_items except order_uid and position; items[0] is the first item';
COMMENT ON COLUMN orders.date_created IS 'When the shop created the order, according to the producer, to the microsecond';
COMMENT ON COLUMN orders.version IS 'Drawn from order_version_seq at every write; strictly rises while the row exists; caches and ETags compare it';
COMMENT ON COLUMN orders.created_at IS 'When this row was first stored';
COMMENT ON COLUMN orders.updated_at IS 'When this row was last written';
COMMENT ON COLUMN orders.source_partition IS 'Kafka partition of the message that last wrote the row; null after a write by the api';
COMMENT ON COLUMN orders.source_offset IS 'Kafka offset of that message';
COMMENT ON COLUMN orders.source_incarnation IS 'Incarnation of the partition at that time, see consumer_offsets; a later message has a greater (incarnation, offset)';
COMMENT ON VIEW deliveries IS 'Recipient and address of each order';
COMMENT ON VIEW payments IS 'How each order was paid';
COMMENT ON VIEW order_items IS 'One row per item; read-only, change items in orders.items';
COMMENT ON COLUMN order_items.position IS 'Index in the array orders.items, from 0';
COMMENT ON COLUMN order_items.sale IS 'Discount in percent';

-- Up to which offset each partition of a topic has been read. This table is the truth, not Kafka's committed offsets: its
-- rows are updated in the transaction that stores what was read.
CREATE TABLE consumer_offsets (
    group_id        text        NOT NULL,
    topic           text        NOT NULL,
    partition       integer     NOT NULL CHECK (partition >= 0),
    next_offset     bigint      NOT NULL CHECK (next_offset >= 0),
    epoch           bigint      NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    owner           uuid,
    incarnation     integer     NOT NULL DEFAULT 0 CHECK (incarnation >= 0),
    last_offset     bigint,
    last_timestamp  bigint,
    replay_until    bigint      CHECK (replay_until >= 0),
    consecutive_bad bigint      NOT NULL DEFAULT 0 CHECK (consecutive_bad >= 0),
    halted          boolean     NOT NULL DEFAULT false,
    updated_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (group_id, topic, partition)
) WITH (fillfactor = 20); -- There are few rows, and every batch updates one. Free space on the page keeps the updates HOT.

COMMENT ON TABLE consumer_offsets IS 'Progress of a consumer group per partition; Kafka''s committed offsets are only a mirror of it';
COMMENT ON COLUMN consumer_offsets.next_offset IS 'Offset of the next record to read; all below it are stored, dead-lettered or superseded';
COMMENT ON COLUMN consumer_offsets.epoch IS 'Raised by 1 by every claim; a batch of an older epoch is refused';
COMMENT ON COLUMN consumer_offsets.owner IS 'The process that last claimed the partition';
COMMENT ON COLUMN consumer_offsets.incarnation IS 'Raised when an operator accepts that the offsets now stand for other records';
COMMENT ON COLUMN consumer_offsets.last_offset IS 'Offset of the last record seen; it is looked up again to notice a recreated topic';
COMMENT ON COLUMN consumer_offsets.last_timestamp IS 'Timestamp of that record in milliseconds since 1970';
COMMENT ON COLUMN consumer_offsets.replay_until IS 'Records below this offset were read before a rewind, so they do not replace what is newer; null: there was no rewind';
COMMENT ON COLUMN consumer_offsets.consecutive_bad IS 'Dead letters since the last good order';
COMMENT ON COLUMN consumer_offsets.halted IS 'True: the partition is not read until an operator resumes it';

-- The fence. It raises an error if no row matches. Without the error, an UPDATE of no rows would count as success and the
-- COMMIT would go through. Clients recognise the refusal by the name of the constraint, because their driver may hide the
-- SQLSTATE.
CREATE FUNCTION advance_consumer_offset(
    p_group_id text, p_topic text, p_partition integer, p_epoch bigint, p_owner uuid,
    p_old_next_offset bigint, p_new_next_offset bigint, p_last_offset bigint, p_last_timestamp bigint,
    p_consecutive_bad bigint, p_halted boolean
) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    UPDATE consumer_offsets
       SET next_offset = p_new_next_offset,
           last_offset = coalesce(p_last_offset, last_offset),
           last_timestamp = CASE WHEN p_last_offset IS NULL THEN last_timestamp ELSE p_last_timestamp END,
           consecutive_bad = p_consecutive_bad,
           halted = p_halted,
           updated_at = clock_timestamp()
     WHERE group_id = p_group_id AND topic = p_topic AND partition = p_partition
       AND epoch = p_epoch AND owner = p_owner AND next_offset = p_old_next_offset AND NOT halted;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'partition % of % is not at offset % under epoch % of this owner', p_partition, p_topic,
                        p_old_next_offset, p_epoch
              USING ERRCODE = 'ZF001', CONSTRAINT = 'consumer_offsets_fence';
    END IF;
    RETURN p_new_next_offset;
END $$;

-- Notes that an offset was set back, by a command or by hand. The records between the new and the old offset were read
-- before, so reading them again is a replay.
CREATE FUNCTION note_rewind() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.replay_until := CASE WHEN NEW.incarnation = OLD.incarnation
                             THEN greatest(OLD.replay_until, OLD.next_offset) END;
    RETURN NEW;
END $$;
CREATE TRIGGER consumer_offsets_rewind BEFORE UPDATE ON consumer_offsets
    FOR EACH ROW WHEN (NEW.next_offset < OLD.next_offset) EXECUTE FUNCTION note_rewind();

-- Mismatches between the offsets of a topic and what was read. Nothing is skipped before an operator accepts an incident. The
-- operator accepts what the incident has recorded, not what the broker says by then. So the incident also records where
-- reading continues.
CREATE TABLE offset_incidents (
    id                 bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    group_id           text        NOT NULL,
    topic              text        NOT NULL,
    partition          integer     NOT NULL,
    incarnation        integer     NOT NULL,
    kind               text        NOT NULL CHECK (kind IN ('retention', 'truncated', 'recreated')),
    next_offset        bigint      NOT NULL,
    low_watermark      bigint      NOT NULL,
    high_watermark     bigint      NOT NULL,
    resume_offset      bigint      NOT NULL CHECK (resume_offset >= 0),
    resume_incarnation integer     NOT NULL CHECK (resume_incarnation >= 0),
    detail             text        NOT NULL,
    detected_at        timestamptz NOT NULL DEFAULT now(),
    resolved_at        timestamptz
);
-- A partition has at most one open incident. Finding the same gap again changes nothing.
CREATE UNIQUE INDEX offset_incidents_open_idx ON offset_incidents (group_id, topic, partition) WHERE resolved_at IS NULL;

COMMENT ON TABLE offset_incidents IS 'Mismatches between our offsets and those of the broker; an open one stops its partition';
COMMENT ON COLUMN offset_incidents.incarnation IS 'The incarnation of the partition when the incident was found';
COMMENT ON COLUMN offset_incidents.kind IS 'retention: records below low_watermark are gone; truncated: next_offset lies beyond high_watermark; recreated: the topic was deleted and recreated';
COMMENT ON COLUMN offset_incidents.next_offset IS 'Offset of the next record to read when the incident was found';
COMMENT ON COLUMN offset_incidents.resume_offset IS 'Offset at which reading continues after an operator has accepted the incident';
COMMENT ON COLUMN offset_incidents.resume_incarnation IS 'The incarnation of the partition from then on; higher than incarnation if offsets then stand for other records';
COMMENT ON COLUMN offset_incidents.resolved_at IS 'When an operator accepted the incident; null: it is open';

-- Messages that can never become an order. Each one is written in the transaction that passes its offset. So it is written
-- exactly once and is never lost.
CREATE TABLE dead_letters (
    id                bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    group_id          text        NOT NULL,
    topic             text        NOT NULL,
    incarnation       integer     NOT NULL,
    partition         integer     NOT NULL,
    "offset"          bigint      NOT NULL,
    key               bytea,
    payload           bytea       CHECK (octet_length(payload) <= 1048576),
    payload_size      bigint      NOT NULL CHECK (payload_size >= 0),
    headers           jsonb       NOT NULL,
    message_timestamp timestamptz,
    reason            text        NOT NULL,
    detail            text        NOT NULL,
    state             text        NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'replayed', 'superseded', 'dropped')),
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now(),
    relayed_at        timestamptz,
    -- A rewind reads refused messages again. ON CONFLICT DO NOTHING on this key keeps the rows that are there.
    UNIQUE (group_id, topic, incarnation, partition, "offset")
);
-- Every second the relay looks for letters that it has not published to KAFKA_DLQ_TOPIC. Without this index it would read
-- all letters each time.
CREATE INDEX dead_letters_unrelayed_idx ON dead_letters (group_id, topic, id) WHERE relayed_at IS NULL;

COMMENT ON TABLE dead_letters IS 'Messages that can never become an order, with their bytes and the reason';
COMMENT ON COLUMN dead_letters.payload IS 'The message''s bytes, cut at 1 MiB; null for a tombstone';
COMMENT ON COLUMN dead_letters.payload_size IS 'Size of the whole message in bytes; 0 for a tombstone';
COMMENT ON COLUMN dead_letters.headers IS 'Array of {"key": text, "value": base64 or null}, in the order of the message''s headers';
COMMENT ON COLUMN dead_letters.reason IS 'Stable code: tombstone, too_large, not_json, invalid_order or refused_by_database';
COMMENT ON COLUMN dead_letters.detail IS 'What exactly was wrong, in words; contains no personal data';
COMMENT ON COLUMN dead_letters.relayed_at IS 'When it was published to KAFKA_DLQ_TOPIC; null: not yet';

-- The rest is for foreign writers: anybody who changes orders without being one of our programs, for example by hand in psql.
-- Our own writers validate what they write, draw versions and notify the caches. A foreign writer does none of this. So the
-- database checks the items, draws a new version, which changes the ETag, and notifies.
--
-- Our sessions set orders.emits when they connect (shared/src/db.rs). A session without it counts as foreign. If one of our
-- writers lost the setting, it would notify twice, which costs little. If foreign writers had to set something, caches would
-- be wrong whenever one forgot it.

-- Returns the first rule that the items of an order break, or null. Our own writers do not call it: it costs 4 us per order.
-- To search the table: SELECT order_uid, order_items_fault(items) FROM orders WHERE order_items_fault(items) IS NOT NULL
CREATE FUNCTION order_items_fault(items jsonb) RETURNS text LANGUAGE sql IMMUTABLE
    SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE type
               WHEN 'string' THEN format('items[%s].%s must be a text of %s to %s characters', position - 1, field, least, most)
               ELSE format('items[%s].%s must be an integer from %s to %s', position - 1, field, least, most)
           END
      FROM jsonb_array_elements(items) WITH ORDINALITY AS elements (item, position),
           (VALUES (1, 'chrt_id', 'number', 0, 9007199254740991), (2, 'track_number', 'string', 0, 256),
                   (3, 'price', 'number', 0, 9007199254740991), (4, 'rid', 'string', 0, 256), (5, 'name', 'string', 1, 256),
                   (6, 'sale', 'number', 0, 100), (7, 'size', 'string', 0, 256),
                   (8, 'total_price', 'number', 0, 9007199254740991), (9, 'nm_id', 'number', 0, 9007199254740991),
                   (10, 'brand', 'string', 1, 256), (11, 'status', 'number', 0, 9007199254740991)
           ) AS rules (number, field, type, least, most)
     WHERE NOT CASE
               WHEN jsonb_typeof(item -> field) IS DISTINCT FROM type THEN false
               WHEN type = 'string' THEN char_length(item ->> field) BETWEEN least AND most
               ELSE (item -> field)::numeric BETWEEN least AND most AND scale((item -> field)::numeric) = 0
           END
     ORDER BY position, number
     LIMIT 1
$$;
COMMENT ON FUNCTION order_items_fault(jsonb) IS 'The first rule that the items of an order break, or null';

-- All triggers are per statement. For our writers each one costs a look at the setting per statement, and the filling of the
-- transition tables. A row trigger BEFORE INSERT could set the version without a second UPDATE, but it would keep COPY from
-- inserting many rows at once.
--
-- The function runs as its owner, because a role that may change an order need not have the right to call nextval. So the
-- function trusts no search path: it qualifies the names of its own schema with the schema of the trigger's table.
CREATE FUNCTION emit_foreign_writes() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- A payload has at most 7,900 bytes, as shared/src/events.rs says. A part holds the uids that end within the same 7,400
    -- bytes. Its first uid may begin before them and may be 386 bytes long. If more than max_uids orders were changed, they are
    -- not named, and the caches drop everything.
    part_bytes CONSTANT integer := 7400;
    max_uids CONSTANT integer := 10000;
    operation text := CASE TG_OP WHEN 'DELETE' THEN 'delete' WHEN 'TRUNCATE' THEN 'flush' ELSE 'upsert' END;
    uids text[];
    former_emits text := coalesce(current_setting('orders.emits', true), '');
    faulty_uid text;
    fault text;
BEGIN
    IF TG_OP <> 'TRUNCATE' THEN
        SELECT array_agg(DISTINCT order_uid) INTO uids FROM changed;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        -- If the uid itself was changed, both the old and the new order were changed.
        uids := uids || ARRAY(SELECT order_uid FROM before EXCEPT SELECT order_uid FROM changed);
    END IF;
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        EXECUTE format('SELECT order_uid, fault FROM changed, %I.order_items_fault(items) AS fault
                         WHERE fault IS NOT NULL ORDER BY order_uid LIMIT 1', TG_TABLE_SCHEMA)
           INTO faulty_uid, fault;
        IF fault IS NOT NULL THEN
            RAISE EXCEPTION 'order %: %', faulty_uid, fault
                  USING ERRCODE = 'check_violation', SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME, COLUMN = 'items',
                        CONSTRAINT = 'orders_items_fields';
        END IF;
        -- The following UPDATE is ours and must not fire the triggers again.
        PERFORM set_config('orders.emits', 'on', true);
        EXECUTE format('UPDATE %I.orders SET version = nextval(%L), updated_at = now() WHERE order_uid = ANY ($1)',
                       TG_TABLE_SCHEMA, format('%I.order_version_seq', TG_TABLE_SCHEMA))
          USING uids;
        PERFORM set_config('orders.emits', former_emits, true);
    END IF;
    IF operation = 'flush' OR cardinality(uids) > max_uids THEN
        PERFORM pg_notify('order_events', '{"v":1,"op":"flush","uids":[]}');
    ELSE
        PERFORM pg_notify('order_events', '{"v":1,"op":"' || operation || '","uids":[' || string_agg(name, ',') || ']}')
           FROM (SELECT name, sum(octet_length(name) + 1) OVER (ORDER BY name) / part_bytes AS part
                   FROM (SELECT to_json(uid)::text AS name FROM unnest(uids) AS uid) AS names) AS parts
          GROUP BY part;
    END IF;
    RETURN NULL;
END $$;

-- Without this, anybody could use the function in triggers on tables of their own, where it would still run as the owner.
-- Firing the triggers here needs no right to execute it.
REVOKE EXECUTE ON FUNCTION emit_foreign_writes() FROM PUBLIC;

CREATE TRIGGER orders_foreign_insert AFTER INSERT ON orders REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT WHEN (current_setting('orders.emits', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION emit_foreign_writes();
CREATE TRIGGER orders_foreign_update AFTER UPDATE ON orders REFERENCING OLD TABLE AS before NEW TABLE AS changed
    FOR EACH STATEMENT WHEN (current_setting('orders.emits', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION emit_foreign_writes();
CREATE TRIGGER orders_foreign_delete AFTER DELETE ON orders REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT WHEN (current_setting('orders.emits', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION emit_foreign_writes();
CREATE TRIGGER orders_truncate AFTER TRUNCATE ON orders
    FOR EACH STATEMENT EXECUTE FUNCTION emit_foreign_writes();
