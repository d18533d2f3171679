DROP INDEX CONCURRENTLY dead_letters_age_idx;
