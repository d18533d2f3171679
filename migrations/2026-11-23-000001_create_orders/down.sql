DROP VIEW payments;
DROP VIEW deliveries;
DROP TABLE order_items;
DROP TABLE orders;
DROP SEQUENCE order_version_seq;
