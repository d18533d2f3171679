CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_email_idx
    ON orders ((lower(delivery_email COLLATE "C")), date_created)
 WHERE delivery_email <> '';
