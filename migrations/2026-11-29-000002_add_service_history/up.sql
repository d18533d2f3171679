-- Gives the database an identity of its own. Caches and ETags need it: versions repeat after a restore and after a failover
-- that lost commits, and then an equal version no longer means equal content.
--
-- A history is the server's system identifier, its timeline, this table's id, and the oid of `orders`. A failover changes the
-- timeline. A restore changes none of the first three, so whoever restores makes the row anew: `ingestor new-history`.
CREATE TABLE service_history (
    is_only           boolean     PRIMARY KEY DEFAULT true CHECK (is_only),
    id                uuid        NOT NULL,
    system_identifier bigint      NOT NULL,
    timeline          integer     NOT NULL,
    made_at           timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE service_history IS 'The identity of this database, one row; made anew by `ingestor new-history` after a restore';
COMMENT ON COLUMN service_history.is_only IS 'Always true: there is one row';
COMMENT ON COLUMN service_history.id IS 'A new one whenever what was read before may no longer hold';
COMMENT ON COLUMN service_history.system_identifier IS 'The server on which the row was made, as pg_control_system() says';
COMMENT ON COLUMN service_history.timeline IS 'The timeline of the server''s log at that time';

-- The timeline is that of the log which is being written. The one in the control file lags behind a promotion.
INSERT INTO service_history (id, system_identifier, timeline)
SELECT gen_random_uuid(), system_identifier, ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer
  FROM pg_control_system();
