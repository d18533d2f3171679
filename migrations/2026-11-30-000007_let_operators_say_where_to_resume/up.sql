-- Where no witness matches, only the operator knows where reading continues, and a new incarnation is drawn on acceptance.
ALTER TABLE offset_incidents
    ADD COLUMN matched_offset bigint,
    ALTER COLUMN resume_offset DROP NOT NULL,
    ALTER COLUMN resume_incarnation DROP NOT NULL;
COMMENT ON COLUMN offset_incidents.matched_offset IS 'Offset of the newest witness that still matches: up to there the log is the one that was read';
COMMENT ON COLUMN offset_incidents.kind IS 'retention: records below low_watermark are gone; truncated: the log was cut, and a witness still matches; recreated: no witness matches';
COMMENT ON COLUMN offset_incidents.resume_offset IS 'Offset at which reading continues after an operator has accepted the incident; null: the operator has to say';
COMMENT ON COLUMN offset_incidents.resume_incarnation IS 'The incarnation of the partition from then on; null: a new one, which is drawn on acceptance';
