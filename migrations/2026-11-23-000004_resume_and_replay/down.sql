DROP TRIGGER consumer_offsets_rewind ON consumer_offsets;
DROP FUNCTION note_rewind();
ALTER TABLE consumer_offsets DROP COLUMN replay_until;
COMMENT ON COLUMN offset_incidents.incarnation IS NULL;
ALTER TABLE offset_incidents DROP COLUMN resume_offset, DROP COLUMN resume_incarnation;
