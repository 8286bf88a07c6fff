-- What each server does, part by part: they may be processes of their own, each with its own signs of life. What `server`
-- says of its last sign of life is the worker's, which alone takes runs.

create table server_role (
    server_id      text not null references server (id),
    role           text not null check (role in ('api', 'worker', 'gateway')),
    project_id     text references project (id), -- null: it serves every project
    seen_at_ms     integer not null,
    alive_since_ms integer not null, -- the first of the signs of life that came without a pause
    version        text not null,
    slots          integer, -- of a worker
    primary key (server_id, role)
) strict, without rowid;
