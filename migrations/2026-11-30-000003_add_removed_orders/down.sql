ALTER TABLE dead_letters DROP COLUMN blanked_at, DROP COLUMN blanked_why;
DROP FUNCTION lock_removed_orders();
DROP FUNCTION look_at_removed_orders();
DROP FUNCTION record_removed(text, text[], text);
DROP FUNCTION unread_positions();
DROP FUNCTION removed_hash(text, text);
DROP TABLE removed_orders;
DROP TABLE removed_orders_key;
