-- The relay asks every second for letters that KAFKA_DLQ_TOPIC has not got; without an index it would read all of the
-- others each time.
CREATE INDEX dead_letters_unrelayed_idx ON dead_letters (group_id, topic, id) WHERE relayed_at IS NULL;
