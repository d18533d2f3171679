-- Where each partition of a topic has been read to. This table, not Kafka's committed offsets, is the truth:
-- it moves in the transaction that stores what was read.
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
    consecutive_bad bigint      NOT NULL DEFAULT 0 CHECK (consecutive_bad >= 0),
    halted          boolean     NOT NULL DEFAULT false,
    updated_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (group_id, topic, partition)
) WITH (fillfactor = 20); -- Few rows, updated at every batch: room on the page keeps the updates HOT.

COMMENT ON TABLE consumer_offsets IS 'Progress of a consumer group by partition; the truth that Kafka''s committed offsets mirror';
COMMENT ON COLUMN consumer_offsets.next_offset IS 'Offset of the next record to read; all below it are stored, dead-lettered or superseded';
COMMENT ON COLUMN consumer_offsets.epoch IS 'Raised by every claim; a batch of an older epoch is refused';
COMMENT ON COLUMN consumer_offsets.owner IS 'The process that claimed the partition last';
COMMENT ON COLUMN consumer_offsets.incarnation IS 'Raised when the topic of this name was accepted as a new one';
COMMENT ON COLUMN consumer_offsets.last_offset IS 'Offset of the last record seen; looked up again to notice a topic made anew';
COMMENT ON COLUMN consumer_offsets.last_timestamp IS 'Timestamp of that record in milliseconds since 1970';
COMMENT ON COLUMN consumer_offsets.consecutive_bad IS 'Dead letters since the last good order';
COMMENT ON COLUMN consumer_offsets.halted IS 'The partition is not read until an operator resumes it';

-- The fence. It raises, because an UPDATE of no rows is no error and the COMMIT behind it would go through.
-- Clients know the refusal by its constraint name: their driver may hide the SQLSTATE.
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

-- Ranges of a topic that did not match what was read; nothing is skipped before an operator accepts one.
CREATE TABLE offset_incidents (
    id            bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    group_id      text        NOT NULL,
    topic         text        NOT NULL,
    partition     integer     NOT NULL,
    incarnation   integer     NOT NULL,
    kind          text        NOT NULL CHECK (kind IN ('retention', 'truncated', 'recreated')),
    next_offset   bigint      NOT NULL,
    low_watermark bigint      NOT NULL,
    high_watermark bigint     NOT NULL,
    detail        text        NOT NULL,
    detected_at   timestamptz NOT NULL DEFAULT now(),
    resolved_at   timestamptz
);
-- One open incident a partition: finding it again changes nothing.
CREATE UNIQUE INDEX offset_incidents_open_idx ON offset_incidents (group_id, topic, partition) WHERE resolved_at IS NULL;

COMMENT ON TABLE offset_incidents IS 'Partitions stopped because the broker''s offsets do not continue ours';
COMMENT ON COLUMN offset_incidents.kind IS 'retention: records below low_watermark are gone; truncated: next_offset lies beyond high_watermark; recreated: another record stands at our last offset';
COMMENT ON COLUMN offset_incidents.next_offset IS 'Where we wanted to go on';
COMMENT ON COLUMN offset_incidents.resolved_at IS 'When an operator accepted the gap';
