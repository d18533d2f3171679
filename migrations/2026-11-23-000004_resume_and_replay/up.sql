-- An operator accepts what an incident recorded, not what the broker says by then: so the incident keeps where reading
-- goes on. And a rewind reads again what was read before: those records must not undo what is newer, so the partition
-- keeps up to where they reach.
ALTER TABLE offset_incidents
    ADD COLUMN resume_offset      bigint  CHECK (resume_offset >= 0),
    ADD COLUMN resume_incarnation integer CHECK (resume_incarnation >= 0);
UPDATE offset_incidents
   SET resume_offset = CASE kind WHEN 'retention' THEN low_watermark ELSE high_watermark END,
       resume_incarnation = incarnation + CASE kind WHEN 'retention' THEN 0 ELSE 1 END;
ALTER TABLE offset_incidents
    ALTER COLUMN resume_offset SET NOT NULL,
    ALTER COLUMN resume_incarnation SET NOT NULL;

ALTER TABLE consumer_offsets ADD COLUMN replay_until bigint CHECK (replay_until >= 0);

COMMENT ON COLUMN offset_incidents.incarnation IS 'The incarnation of the partition when the incident was found';
COMMENT ON COLUMN offset_incidents.resume_offset IS 'Where reading goes on once an operator has accepted the gap';
COMMENT ON COLUMN offset_incidents.resume_incarnation IS 'The incarnation of the partition from then on; higher than incarnation where offsets then stand for other records';
COMMENT ON COLUMN consumer_offsets.replay_until IS 'Records below were read before a rewind: they do not replace what is newer; null: none';

-- By whomever an offset is set back, by a command or by hand: what was read before is a replay.
CREATE FUNCTION note_rewind() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.replay_until := CASE WHEN NEW.incarnation = OLD.incarnation
                             THEN greatest(OLD.replay_until, OLD.next_offset) END;
    RETURN NEW;
END $$;
CREATE TRIGGER consumer_offsets_rewind BEFORE UPDATE ON consumer_offsets
    FOR EACH ROW WHEN (NEW.next_offset < OLD.next_offset) EXECUTE FUNCTION note_rewind();
