COMMENT ON COLUMN offset_incidents.kind IS 'retention: records below low_watermark are gone; truncated: next_offset lies beyond high_watermark; recreated: the topic was deleted and recreated';
COMMENT ON COLUMN offset_incidents.resume_offset IS 'Offset at which reading continues after an operator has accepted the incident';
COMMENT ON COLUMN offset_incidents.resume_incarnation IS 'The incarnation of the partition from then on; higher than incarnation if offsets then stand for other records';
-- The former release reads the whole topic after such an incident.
UPDATE offset_incidents SET resume_offset = coalesce(resume_offset, low_watermark),
                            resume_incarnation = coalesce(resume_incarnation, incarnation + 1)
 WHERE resume_offset IS NULL OR resume_incarnation IS NULL;
ALTER TABLE offset_incidents
    DROP COLUMN matched_offset,
    ALTER COLUMN resume_offset SET NOT NULL,
    ALTER COLUMN resume_incarnation SET NOT NULL;
