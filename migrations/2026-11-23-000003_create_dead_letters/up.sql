-- Messages that can never become an order, written in the transaction that passes their offset: exactly once,
-- never lost.
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
    -- A rewind meets its own rows again; ON CONFLICT DO NOTHING on this key lets it pass.
    UNIQUE (group_id, topic, incarnation, partition, "offset")
);

COMMENT ON TABLE dead_letters IS 'Messages refused for ever, with the bytes and the reason';
COMMENT ON COLUMN dead_letters.payload IS 'The message''s bytes, cut at 1 MiB; null for a tombstone';
COMMENT ON COLUMN dead_letters.payload_size IS 'Size of the whole message in bytes; 0 for a tombstone';
COMMENT ON COLUMN dead_letters.headers IS 'Array of {"key": text, "value": base64 or null}, in the message''s order';
COMMENT ON COLUMN dead_letters.reason IS 'Stable code: tombstone, too_large, not_json, invalid_order or refused_by_database';
COMMENT ON COLUMN dead_letters.detail IS 'What exactly was wrong, for people; holds no personal data';
COMMENT ON COLUMN dead_letters.relayed_at IS 'When it was published to KAFKA_DLQ_TOPIC';
