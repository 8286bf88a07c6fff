-- Which directory of artifacts a server keeps what runs leave in, where several servers share one: whoever has the same
-- directory finds the files of all of them there.
alter table server add column artifacts_id text; -- null: one of its own, in its state directory
