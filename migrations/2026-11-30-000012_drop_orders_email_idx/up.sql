-- orders_person_idx takes its place. An api of the former release searches slowly until it is replaced.
DROP INDEX CONCURRENTLY IF EXISTS orders_email_idx;
