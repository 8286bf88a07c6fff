-- What each server does, part by part: they may be processes of their own, each with its own signs of life. What `server`
-- says of its last sign of life is the worker's, which alone takes runs.

create table server_role (
    server_id      text collate "C" not null references server (id),
    role           text collate "C" not null check (role in ('api', 'worker', 'gateway')),
    project_id     text collate "C" references project (id), -- null: it serves every project
    seen_at_ms     bigint not null,
    alive_since_ms bigint not null, -- the first of the signs of life that came without a pause
    version        text collate "C" not null,
    slots          bigint, -- of a worker
    primary key (server_id, role)
);
