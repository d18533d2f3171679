-- Our own writers tell the caches what they change, in few and full notifications. Whoever else changes an order, by hand
-- in psql or by a program of their own, knows nothing of that: for them the database draws a new version, so that ETags
-- change, and notifies.
--
-- Our sessions bring the setting orders.emits along when they connect (shared/src/db.rs). A session without it counts as
-- foreign: a writer of ours that lost it would notify twice, which costs little; the other way round caches would be wrong.
--
-- Statement triggers alone. For our writers they cost a look at the setting each statement, and what the transition tables
-- take to fill. A row trigger BEFORE INSERT could set the version without a second UPDATE, but it keeps COPY from inserting
-- many rows at once.

-- Payloads of at most 7,900 bytes, as shared/src/events.rs defines them. Above 10,000 orders everything is dropped instead.
CREATE FUNCTION notify_order_events(operation text, uids text[]) RETURNS void LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF operation = 'flush' OR cardinality(uids) > 10000 THEN
        PERFORM pg_notify('order_events', '{"v":1,"op":"flush","uids":[]}');
        RETURN;
    END IF;
    -- A part holds the uids whose ends lie within the same 7,400 bytes. One of them may begin before, and be 386 bytes long.
    PERFORM pg_notify('order_events', '{"v":1,"op":"' || operation || '","uids":[' || string_agg(name, ',') || ']}')
       FROM (SELECT name, sum(octet_length(name) + 1) OVER (ORDER BY name) / 7400 AS part
               FROM (SELECT DISTINCT to_json(uid)::text AS name FROM unnest(uids) AS uid) AS names) AS parts
      GROUP BY part;
END $$;

-- Runs as the owner, because a role that may change items may not be one that may change orders. Its names mean the tables
-- beside the trigger's, whatever path the session has; and its own UPDATE is not a foreign one.
CREATE FUNCTION emit_foreign_writes() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    former text := coalesce(current_setting('orders.emits', true), '');
    uids text[];
BEGIN
    PERFORM set_config('search_path', quote_ident(TG_TABLE_SCHEMA) || ', pg_temp', true),
            set_config('orders.emits', 'on', true);
    IF TG_OP = 'TRUNCATE' THEN
        -- Of items alone: every order has changed. Of both: there is none left.
        UPDATE orders SET version = nextval('order_version_seq'), updated_at = now();
        PERFORM notify_order_events('flush', NULL);
    ELSIF TG_OP = 'DELETE' AND TG_TABLE_NAME = 'orders' THEN
        PERFORM notify_order_events('delete', array_agg(order_uid)) FROM changed;
    ELSE
        SELECT array_agg(DISTINCT order_uid) INTO uids FROM changed;
        IF TG_OP = 'UPDATE' THEN
            -- Where the uid itself was changed, both were.
            uids := uids || ARRAY(SELECT order_uid FROM before EXCEPT SELECT order_uid FROM changed);
        END IF;
        IF TG_TABLE_NAME = 'order_items' THEN
            -- Locked in the order of uids, as every writer does. Those that a cascade has left without items are gone.
            uids := ARRAY(SELECT order_uid FROM orders WHERE order_uid = ANY (uids) ORDER BY order_uid FOR UPDATE);
        END IF;
        UPDATE orders SET version = nextval('order_version_seq'), updated_at = now() WHERE order_uid = ANY (uids);
        PERFORM notify_order_events('upsert', uids);
    END IF;
    PERFORM set_config('orders.emits', former, true);
    RETURN NULL;
END $$;

-- Nobody else may hang it on tables of their own, where it would still run as the owner. Firing it needs no right.
REVOKE EXECUTE ON FUNCTION emit_foreign_writes() FROM PUBLIC;

CREATE TRIGGER orders_foreign_insert AFTER INSERT ON orders REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT WHEN (current_setting('orders.emits', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION emit_foreign_writes();
CREATE TRIGGER orders_foreign_update AFTER UPDATE ON orders REFERENCING OLD TABLE AS before NEW TABLE AS changed
    FOR EACH STATEMENT WHEN (current_setting('orders.emits', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION emit_foreign_writes();
CREATE TRIGGER orders_foreign_delete AFTER DELETE ON orders REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT WHEN (current_setting('orders.emits', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION emit_foreign_writes();
CREATE TRIGGER orders_truncate AFTER TRUNCATE ON orders
    FOR EACH STATEMENT EXECUTE FUNCTION emit_foreign_writes();

CREATE TRIGGER order_items_foreign_insert AFTER INSERT ON order_items REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT WHEN (current_setting('orders.emits', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION emit_foreign_writes();
CREATE TRIGGER order_items_foreign_update AFTER UPDATE ON order_items REFERENCING OLD TABLE AS before NEW TABLE AS changed
    FOR EACH STATEMENT WHEN (current_setting('orders.emits', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION emit_foreign_writes();
CREATE TRIGGER order_items_foreign_delete AFTER DELETE ON order_items REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT WHEN (current_setting('orders.emits', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION emit_foreign_writes();
CREATE TRIGGER order_items_truncate AFTER TRUNCATE ON order_items
    FOR EACH STATEMENT EXECUTE FUNCTION emit_foreign_writes();
