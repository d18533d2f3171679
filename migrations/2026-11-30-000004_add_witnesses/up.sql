-- A log that was cut, as an unclean leader election does, is distinguished from a topic that was made anew by records that were
-- read: the witnesses. What may have been read before such an incident does not replace what is newer.

ALTER TABLE consumer_offsets
    ADD COLUMN witnesses       bigint[] NOT NULL DEFAULT '{}',
    ADD COLUMN max_timestamp   bigint,
    ADD COLUMN log_since       integer,
    ADD COLUMN doubt_until     bigint,
    ADD COLUMN doubt_timestamp bigint;
-- allow constraint on consumer_offsets: the table has a row for each partition, so the check takes no time
ALTER TABLE consumer_offsets ADD CONSTRAINT consumer_offsets_witnesses_check CHECK (cardinality(witnesses) % 3 = 0);

COMMENT ON COLUMN consumer_offsets.witnesses IS 'Records that were read, by rising offset: offset, timestamp in milliseconds since 1970 (-1: none) and hash of the payload of each, one after the other';
COMMENT ON COLUMN consumer_offsets.max_timestamp IS 'The highest timestamp of all records that were read, in milliseconds since 1970';
COMMENT ON COLUMN consumer_offsets.log_since IS 'The first incarnation of the same log: a log that was cut keeps it, and a topic that was made anew does not; null: the present incarnation';
COMMENT ON COLUMN consumer_offsets.doubt_until IS 'Only records below this offset may have been read in an earlier incarnation; null: records at any offset';
COMMENT ON COLUMN consumer_offsets.doubt_timestamp IS 'Only records with this timestamp or an earlier one, or with none, may have been read in an earlier incarnation; null: no record may';
COMMENT ON COLUMN consumer_offsets.incarnation IS 'Drawn from incarnation_seq when the row is made, and again when an operator accepts that the offsets now stand for other records';

-- A sequence, so that no incarnation comes twice, even if the rows were deleted by hand. A later incarnation is greater.
CREATE SEQUENCE incarnation_seq AS integer;
SELECT setval('incarnation_seq', greatest(
    (SELECT max(incarnation) FROM consumer_offsets), (SELECT max(resume_incarnation) FROM offset_incidents), 0) + 1, false);
ALTER TABLE consumer_offsets ALTER COLUMN incarnation SET DEFAULT nextval('incarnation_seq');

COMMENT ON COLUMN dead_letters.reason IS 'Stable code: tombstone, too_large, not_json, invalid_order, refused_by_database or held_back';

-- The fence of a batch that also leaves a witness. Processes of the former release call the function without witnesses.
CREATE FUNCTION advance_consumer_offset(
    p_group_id text, p_topic text, p_partition integer, p_epoch bigint, p_owner uuid,
    p_old_next_offset bigint, p_new_next_offset bigint, p_last_offset bigint, p_last_timestamp bigint,
    p_consecutive_bad bigint, p_halted boolean, p_witnesses bigint[], p_max_timestamp bigint
) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    UPDATE consumer_offsets
       SET next_offset = p_new_next_offset,
           last_offset = coalesce(p_last_offset, last_offset),
           last_timestamp = CASE WHEN p_last_offset IS NULL THEN last_timestamp ELSE p_last_timestamp END,
           consecutive_bad = p_consecutive_bad,
           halted = p_halted,
           witnesses = p_witnesses,
           max_timestamp = greatest(max_timestamp, p_max_timestamp),
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
