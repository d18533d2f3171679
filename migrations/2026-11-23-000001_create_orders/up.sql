-- Orders, with the one-to-one delivery and payment as columns: a table of their own would cost a join, an
-- index and a foreign key each, and a part could be missing.

-- One sequence for every version of every order, never reset: a version is unique for ever, so equality of
-- versions means equality of content, and caches and ETags may rely on it. CACHE 1 keeps it rising over
-- sessions.
CREATE SEQUENCE order_version_seq AS bigint CACHE 1;

-- CHECKs cover lengths and ranges only: the ingestor validates everything else, and regular expressions on
-- every text cost a third of COPY's speed.
CREATE TABLE orders (
    order_uid             text        PRIMARY KEY CHECK (char_length(order_uid) BETWEEN 1 AND 64),
    track_number          text        NOT NULL CHECK (char_length(track_number) BETWEEN 1 AND 256),
    entry                 text        NOT NULL CHECK (char_length(entry) <= 256),
    delivery_name         text        NOT NULL CHECK (char_length(delivery_name) BETWEEN 1 AND 256),
    delivery_phone        text        NOT NULL CHECK (char_length(delivery_phone) BETWEEN 5 AND 32),
    delivery_zip          text        NOT NULL CHECK (char_length(delivery_zip) <= 256),
    delivery_city         text        NOT NULL CHECK (char_length(delivery_city) BETWEEN 1 AND 256),
    delivery_address      text        NOT NULL CHECK (char_length(delivery_address) BETWEEN 1 AND 512),
    delivery_region       text        NOT NULL CHECK (char_length(delivery_region) BETWEEN 1 AND 256),
    delivery_email        text        NOT NULL CHECK (char_length(delivery_email) BETWEEN 1 AND 256),
    payment_transaction   text        NOT NULL CHECK (char_length(payment_transaction) BETWEEN 1 AND 256),
    payment_request_id    text        NOT NULL CHECK (char_length(payment_request_id) <= 256),
    payment_currency      text        NOT NULL CHECK (char_length(payment_currency) = 3),
    payment_provider      text        NOT NULL CHECK (char_length(payment_provider) BETWEEN 1 AND 256),
    payment_amount        bigint      NOT NULL CHECK (payment_amount BETWEEN 0 AND 9007199254740991),
    payment_dt            bigint      NOT NULL CHECK (payment_dt BETWEEN 0 AND 4102444800),
    payment_bank          text        NOT NULL CHECK (char_length(payment_bank) <= 256),
    payment_delivery_cost bigint      NOT NULL CHECK (payment_delivery_cost BETWEEN 0 AND 9007199254740991),
    payment_goods_total   bigint      NOT NULL CHECK (payment_goods_total BETWEEN 0 AND 9007199254740991),
    payment_custom_fee    bigint      NOT NULL CHECK (payment_custom_fee BETWEEN 0 AND 9007199254740991),
    locale                text        NOT NULL CHECK (char_length(locale) <= 256),
    internal_signature    text        NOT NULL CHECK (char_length(internal_signature) <= 256),
    customer_id           text        NOT NULL CHECK (char_length(customer_id) BETWEEN 1 AND 256),
    delivery_service      text        NOT NULL CHECK (char_length(delivery_service) <= 256),
    shardkey              text        NOT NULL CHECK (char_length(shardkey) <= 256),
    sm_id                 bigint      NOT NULL CHECK (sm_id BETWEEN 0 AND 9007199254740991),
    date_created          timestamptz NOT NULL CHECK (date_created >= '2000-01-01Z' AND date_created < '2101-01-01Z'),
    oof_shard             text        NOT NULL CHECK (char_length(oof_shard) <= 256),
    version               bigint      NOT NULL DEFAULT nextval('order_version_seq'),
    created_at            timestamptz NOT NULL DEFAULT now(),
    updated_at            timestamptz NOT NULL DEFAULT now(),
    source_partition      integer,
    source_offset         bigint
);

-- The newest first, and by customer: both are keyset orders of the list route.
CREATE INDEX orders_newest_idx ON orders (date_created DESC, order_uid DESC);
CREATE INDEX orders_customer_idx ON orders (customer_id, date_created DESC, order_uid DESC);
CREATE INDEX orders_track_number_idx ON orders (track_number);

CREATE TABLE order_items (
    order_uid    text    NOT NULL REFERENCES orders ON DELETE CASCADE,
    position     integer NOT NULL CHECK (position BETWEEN 0 AND 999),
    chrt_id      bigint  NOT NULL CHECK (chrt_id BETWEEN 0 AND 9007199254740991),
    track_number text    NOT NULL CHECK (char_length(track_number) <= 256),
    price        bigint  NOT NULL CHECK (price BETWEEN 0 AND 9007199254740991),
    rid          text    NOT NULL CHECK (char_length(rid) <= 256),
    name         text    NOT NULL CHECK (char_length(name) BETWEEN 1 AND 256),
    sale         integer NOT NULL CHECK (sale BETWEEN 0 AND 100),
    size         text    NOT NULL CHECK (char_length(size) <= 256),
    total_price  bigint  NOT NULL CHECK (total_price BETWEEN 0 AND 9007199254740991),
    nm_id        bigint  NOT NULL CHECK (nm_id BETWEEN 0 AND 9007199254740991),
    brand        text    NOT NULL CHECK (char_length(brand) BETWEEN 1 AND 256),
    status       bigint  NOT NULL CHECK (status BETWEEN 0 AND 9007199254740991),
    PRIMARY KEY (order_uid, position)
);

-- Every entity of the business has a name in SQL.
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

COMMENT ON TABLE orders IS 'One row an order, written by the ingestor and by the api''s PUT and DELETE';
COMMENT ON COLUMN orders.order_uid IS 'The producer''s id of the order, [A-Za-z0-9][A-Za-z0-9._-]{0,63}';
COMMENT ON COLUMN orders.payment_amount IS 'Minor units of payment_currency, as every amount, price and fee here';
COMMENT ON COLUMN orders.payment_dt IS 'Seconds since 1970; 0 where the producer did not say';
COMMENT ON COLUMN orders.date_created IS 'When the shop created the order, to the microsecond; says the producer';
COMMENT ON COLUMN orders.version IS 'Drawn from order_version_seq at every write; strictly rises while the row exists; ETag and cache key on it';
COMMENT ON COLUMN orders.created_at IS 'When this row was first stored';
COMMENT ON COLUMN orders.updated_at IS 'When this row was last written';
COMMENT ON COLUMN orders.source_partition IS 'Kafka partition of the message last stored; null after a PUT';
COMMENT ON COLUMN orders.source_offset IS 'Kafka offset of the message last stored; null after a PUT';
COMMENT ON TABLE order_items IS 'The items of an order, in the order of the message';
COMMENT ON COLUMN order_items.position IS 'Place in the order''s list of items, from 0';
COMMENT ON COLUMN order_items.sale IS 'Discount in percent';
