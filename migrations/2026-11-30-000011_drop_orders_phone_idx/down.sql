CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_phone_idx
    ON orders ((translate(delivery_phone COLLATE "C", translate(delivery_phone, '0123456789', ''), '')), date_created)
 WHERE delivery_phone <> '';
