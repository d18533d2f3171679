DROP FUNCTION advance_consumer_offset(text, text, integer, bigint, uuid, bigint, bigint, bigint, bigint, bigint, boolean,
                                      bigint[], bigint);
COMMENT ON COLUMN dead_letters.reason IS 'Stable code: tombstone, too_large, not_json, invalid_order or refused_by_database';
ALTER TABLE consumer_offsets ALTER COLUMN incarnation SET DEFAULT 0;
DROP SEQUENCE incarnation_seq;
COMMENT ON COLUMN consumer_offsets.incarnation IS 'Raised when an operator accepts that the offsets now stand for other records';
ALTER TABLE consumer_offsets
    DROP COLUMN witnesses,
    DROP COLUMN max_timestamp,
    DROP COLUMN log_since,
    DROP COLUMN doubt_until,
    DROP COLUMN doubt_timestamp;
