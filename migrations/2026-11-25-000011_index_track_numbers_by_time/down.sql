DROP INDEX orders_track_number_idx;
CREATE INDEX orders_track_number_idx ON orders (track_number);
