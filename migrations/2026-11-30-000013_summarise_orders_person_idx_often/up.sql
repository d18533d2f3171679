-- VACUUM makes the filters of orders_person_idx for the pages that are new. Every search reads the pages that have none yet. By
-- default, autovacuum would come only after a fifth of all orders are new. It reads only new pages, so coming often costs little.
ALTER TABLE orders SET (autovacuum_vacuum_insert_scale_factor = 0.01, autovacuum_vacuum_insert_threshold = 10000);
