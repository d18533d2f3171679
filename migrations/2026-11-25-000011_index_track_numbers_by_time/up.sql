-- A list of one track number is walked newest first, page by page, as one of a customer is: an index of the number alone
-- leaves the order to a sort of all that match, or to a walk over all orders of the table.
DROP INDEX orders_track_number_idx;
CREATE INDEX orders_track_number_idx ON orders (track_number, date_created DESC, order_uid DESC);
