-- A lost server that an operator does not want to see any more. Its row stays, since runs, calls and records name it.

alter table server add column forgotten_at_ms bigint; -- null: it is listed; set back by its next sign of life
