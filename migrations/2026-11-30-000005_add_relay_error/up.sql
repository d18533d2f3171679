-- Kafka can refuse a letter for what the letter itself is, however small it is made. The relay then passes it over, so that the
-- letters behind it are published.
--
-- Such a letter gets a time in relayed_at as well. So the relay's index stays as it is, and a process of the former version,
-- which does not know the new column, does not try such a letter again and again.
ALTER TABLE dead_letters ADD COLUMN relay_error text;

COMMENT ON COLUMN dead_letters.relay_error IS 'Why KAFKA_DLQ_TOPIC has refused the letter, however small it was made; null: it has not';
COMMENT ON COLUMN dead_letters.relayed_at IS 'When it was published to KAFKA_DLQ_TOPIC, or refused if relay_error is not null; null: it waits for the relay';
