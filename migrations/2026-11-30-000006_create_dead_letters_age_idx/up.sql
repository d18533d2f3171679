-- DEAD_LETTER_RETENTION_DAYS removes the bytes of old letters, step by step. Without this index each step would read all letters.
-- Letters without bytes are not in it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS dead_letters_age_idx ON dead_letters (created_at) WHERE blanked_at IS NULL;
