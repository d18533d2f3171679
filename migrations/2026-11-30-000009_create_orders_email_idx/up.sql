-- POST /api/v1/orders/search finds orders by e-mail, newest first. With COLLATE "C", lower changes A to Z only and does not depend on
-- the C library, whose upgrade could break the index. date_created and the condition are there as in orders_phone_idx.
CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_email_idx
    ON orders ((lower(delivery_email COLLATE "C")), date_created)
 WHERE delivery_email <> '';
