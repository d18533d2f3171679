-- The roles of the order service. Each has no more rights than its work needs.
--
--   orders_migrator  owns the schema: `ingestor migrate`, `erase` and `purge`
--   orders_ingestor  every other command of the ingestor; the daemon runs with `--no-migrate`
--   orders_api       the api
--   orders_reader    people and reports: orders and progress, but neither the bytes of dead letters nor the ledger
--
-- Run this file with psql as a superuser in the service's database, before or after the first migration, as often as you like:
--
--   psql -d myapp_db -f deploy/postgres/roles.sql
--
-- Then run `ingestor migrate` as orders_migrator. It grants the rights on tables and sequences, now and after each upgrade, so
-- this file need not be run again. docs/OPERATIONS.md#roles lists the rights.
--
-- The roles may log in, but this file contains no passwords, and without one nobody can log in by password. Set them with
-- `\password orders_api`, or here: psql -v api_password="$API_DB_PASSWORD" -v ingestor_password=... -v migrator_password=...
-- -v reader_password=... (others on the machine may see them in the list of processes). To change a password without a gap,
-- make a second role: CREATE ROLE orders_api_2 LOGIN IN ROLE orders_api.
--
-- The schema `public` of this database belongs to the service alone: everything in it is given to orders_migrator, and only these
-- roles, the database's owner and superusers may connect from now on. Each role is known to the whole server, but has rights only
-- in databases in which this file was run.

\set ON_ERROR_STOP on
\set QUIET on
SET client_min_messages = warning;

-- ALTER waits for the transactions that use a table, and everybody else waits behind it. It gives up soon: run the file again.
SET lock_timeout = '5s';

BEGIN;

SELECT format('CREATE ROLE %I LOGIN', name)
  FROM unnest(ARRAY['orders_migrator', 'orders_ingestor', 'orders_api', 'orders_reader']) AS name
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec

\if :{?migrator_password}
ALTER ROLE orders_migrator PASSWORD :'migrator_password';
\endif
\if :{?ingestor_password}
ALTER ROLE orders_ingestor PASSWORD :'ingestor_password';
\endif
\if :{?api_password}
ALTER ROLE orders_api PASSWORD :'api_password';
\endif
\if :{?reader_password}
ALTER ROLE orders_reader PASSWORD :'reader_password';
\endif

-- An administrator who is no superuser, as in hosted databases, can give away only to roles whose member he is.
SELECT 'GRANT orders_migrator TO CURRENT_USER'
 WHERE NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
\gexec

-- Whoever may connect can make every cache drop its orders, because every role may NOTIFY on every channel.
SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database())
\gexec
SELECT format('GRANT CONNECT ON DATABASE %I TO orders_migrator, orders_ingestor, orders_api, orders_reader', current_database())
\gexec

-- PostgreSQL 14 lets everybody create objects here.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO orders_migrator, orders_ingestor, orders_api, orders_reader;
GRANT CREATE ON SCHEMA public TO orders_migrator;

-- What an earlier migration by another role has made. A sequence that belongs to a column follows its table, and what belongs to
-- an extension stays.
SELECT format('ALTER %s %s OWNER TO orders_migrator', kind, name)
  FROM (SELECT 'pg_class'::regclass AS catalog, oid, relowner AS owner, oid::regclass::text AS name,
               CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind
          FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S')
        UNION ALL
        SELECT 'pg_proc'::regclass, oid, proowner, oid::regprocedure::text, 'ROUTINE'
          FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prokind IN ('f', 'p')) AS objects
 WHERE owner <> 'orders_migrator'::regrole
   AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = catalog AND objid = objects.oid AND deptype IN ('a', 'e', 'i')
                                           AND (kind = 'SEQUENCE' OR deptype = 'e'))
 ORDER BY kind = 'SEQUENCE', name
\gexec

COMMIT;
