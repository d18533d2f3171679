-- POST /api/v1/orders/search finds orders by the digits of a phone and by an e-mail in lower case. A B-tree for each put two entries
-- at random places for every order. This index has one Bloom filter of phones and one of e-mails for every 32 pages of the table,
-- about 300 orders, and a million orders have 6 MB of it. A search looks at all filters and reads the few ranges that may have the
-- order.
--
-- A range has no more than 400 different values. One range in a thousand is read in vain. With COLLATE "C", lower changes A to Z
-- only, and neither expression depends on the C library, whose upgrade could break the index. The inner translate leaves what is no
-- digit, and the outer one removes that.
CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_person_idx ON orders USING brin (
    (translate(delivery_phone COLLATE "C", translate(delivery_phone, '0123456789', ''), ''))
        text_bloom_ops (n_distinct_per_range = 400, false_positive_rate = 0.001),
    (lower(delivery_email COLLATE "C"))
        text_bloom_ops (n_distinct_per_range = 400, false_positive_rate = 0.001)
) WITH (pages_per_range = 32);
