DROP TABLE offset_incidents;
DROP FUNCTION advance_consumer_offset(text, text, integer, bigint, uuid, bigint, bigint, bigint, bigint, bigint, boolean);
DROP TABLE consumer_offsets;
