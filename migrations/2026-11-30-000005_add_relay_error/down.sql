COMMENT ON COLUMN dead_letters.relayed_at IS 'When it was published to KAFKA_DLQ_TOPIC; null: not yet';
ALTER TABLE dead_letters DROP COLUMN relay_error;
