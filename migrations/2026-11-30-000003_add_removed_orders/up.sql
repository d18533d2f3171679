-- The ledger of removed orders, so that no old message revives an order that was deleted or erased: not a rewind, not a replay,
-- not a late message. And the columns that say that a dead letter has no bytes any more.
--
-- The ledger must not keep what was erased, so it holds only hashes: HMAC-SHA-256 (RFC 2104), cut to 128 bits, which are
-- compared as a uuid. Whoever can read the key can test whether a known uid is in the ledger. So the entries are pseudonymous,
-- not anonymous.

-- The two pads of HMAC in place of the key itself: with them a hash needs no loop, neither here nor in the programs.
CREATE TABLE removed_orders_key (
    is_only   boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    inner_pad bytea   NOT NULL CHECK (octet_length(inner_pad) = 64),
    outer_pad bytea   NOT NULL CHECK (octet_length(outer_pad) = 64)
);

COMMENT ON TABLE removed_orders_key IS 'The key of the hashes in removed_orders, one row; with another key the entries match nothing';
COMMENT ON COLUMN removed_orders_key.inner_pad IS 'The key, filled with zeros to 64 bytes, XOR 0x36';
COMMENT ON COLUMN removed_orders_key.outer_pad IS 'The same, XOR 0x5c';

DO $$
DECLARE
    -- Four random uuids have 488 random bits, and the key has 256.
    key bytea := sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
                        || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
                 || decode(repeat('00', 32), 'hex');
    inner_pad bytea := key;
    outer_pad bytea := key;
BEGIN
    FOR i IN 0..63 LOOP
        inner_pad := set_byte(inner_pad, i, get_byte(key, i) # 54);
        outer_pad := set_byte(outer_pad, i, get_byte(key, i) # 92);
    END LOOP;
    INSERT INTO removed_orders_key (inner_pad, outer_pad) VALUES (inner_pad, outer_pad);
END $$;

CREATE TABLE removed_orders (
    hash       uuid        PRIMARY KEY,
    kind       text        NOT NULL CHECK (kind IN ('order', 'customer')),
    how        text        NOT NULL CHECK (how IN ('deleted', 'erased')),
    removed_at timestamptz NOT NULL,
    positions  jsonb       NOT NULL
);
-- Every batch asks for the time of the newest entry, and of the newest erasure. Later messages need no look at single entries.
CREATE INDEX removed_orders_newest_idx ON removed_orders (removed_at);
CREATE INDEX removed_orders_newest_erased_idx ON removed_orders (removed_at) WHERE how = 'erased';

COMMENT ON TABLE removed_orders IS 'Orders that the api deleted, and orders and customers that `ingestor erase` erased; no older message brings them back';
COMMENT ON COLUMN removed_orders.hash IS 'removed_hash(kind, order_uid or customer_id)';
COMMENT ON COLUMN removed_orders.kind IS 'order: one order; customer: every order of a customer';
COMMENT ON COLUMN removed_orders.how IS 'deleted: by the api; erased: by `ingestor erase`, and for ever';
COMMENT ON COLUMN removed_orders.removed_at IS 'When it was removed last; only a message with a later timestamp is new';
COMMENT ON COLUMN removed_orders.positions IS 'Per group, topic and partition: [incarnation, offset] of the next record at that time; what is below is not new';

-- 128 bits of HMAC-SHA-256. The kind is part of the text, so that a customer and an order of one name differ.
CREATE FUNCTION removed_hash(kind text, id text) RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT encode(substring(sha256(outer_pad || sha256(inner_pad || convert_to(kind || ':' || id, 'UTF8'))) FOR 16), 'hex')::uuid
      FROM removed_orders_key
$$;
COMMENT ON FUNCTION removed_hash(text, text) IS 'The hash of an order_uid (kind order) or a customer_id (kind customer) in removed_orders';

-- What no group has read yet: per group, topic and partition [incarnation, offset]. Groups are kept apart, because each
-- partition of a group has incarnations of its own. Below replay_until everything was read, even while a rewind reads it
-- again. The partitions of imports are left out: their records have no timestamps, so they are never new.
CREATE FUNCTION unread_positions() RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT coalesce(jsonb_object_agg(group_id, topics), '{}')
      FROM (SELECT group_id, jsonb_object_agg(topic, partitions) AS topics
              FROM (SELECT group_id, topic,
                           jsonb_object_agg(partition, jsonb_build_array(incarnation, greatest(next_offset, replay_until)))
                               AS partitions
                      FROM consumer_offsets
                     WHERE topic NOT LIKE 'import:%'
                     GROUP BY group_id, topic) AS by_topic
             GROUP BY group_id) AS by_group
$$;
COMMENT ON FUNCTION unread_positions() IS 'The value of removed_orders.positions at present';

-- Writes entries, and returns how many. An order can be removed again; once erased, it stays erased.
--
-- plpgsql keeps the plan. The statement begins after the caller has locked the order, so it sees every offset that was
-- committed with a message of the order.
CREATE FUNCTION record_removed(p_kind text, p_ids text[], p_how text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    recorded bigint;
BEGIN
    INSERT INTO removed_orders AS entry (hash, kind, how, removed_at, positions)
    SELECT removed_hash(p_kind, id), p_kind, p_how, clock_timestamp(), positions
      FROM (SELECT DISTINCT unnest(p_ids) AS id) AS ids, unread_positions() AS positions
     ORDER BY 1
        ON CONFLICT (hash) DO UPDATE
       SET how = CASE entry.how WHEN 'erased' THEN entry.how ELSE excluded.how END,
           removed_at = greatest(entry.removed_at, excluded.removed_at),
           positions = excluded.positions;
    GET DIAGNOSTICS recorded = ROW_COUNT;
    RETURN recorded;
END $$;
COMMENT ON FUNCTION record_removed(text, text[], text) IS 'Notes in removed_orders that these orders or customers were removed';

-- The first look of a batch at the ledger. From here to its end the transaction has the shared lock, so that an erasure sees
-- all that the batch writes, or the batch sees the erasure. The lock comes first, and a function that is VOLATILE takes a new
-- snapshot for its next statement.
CREATE FUNCTION look_at_removed_orders(OUT newest timestamptz, OUT newest_erased timestamptz)
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(119182731994482);
    SELECT max(removed_at) INTO newest FROM removed_orders;
    IF newest IS NOT NULL THEN
        SELECT max(removed_at) INTO newest_erased FROM removed_orders WHERE how = 'erased';
    END IF;
END $$;
COMMENT ON FUNCTION look_at_removed_orders() IS 'Takes the shared lock of the ledger, and returns when the newest entry and the newest erasure were written';

-- The exclusive lock, under which an erasure writes its entries: no batch is under way then.
CREATE FUNCTION lock_removed_orders() RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(119182731994482);
    RETURN true;
END $$;
COMMENT ON FUNCTION lock_removed_orders() IS 'Waits for all batches that are under way, and holds up new ones until the end of the transaction';

ALTER TABLE dead_letters
    ADD COLUMN blanked_at timestamptz,
    ADD COLUMN blanked_why text;

COMMENT ON COLUMN dead_letters.blanked_at IS 'When key, payload and headers were removed; null: they are kept';
COMMENT ON COLUMN dead_letters.blanked_why IS 'erased: the message names what was erased; expired: older than DEAD_LETTER_RETENTION_DAYS';
