-- Attachments: images and files that came with a run's task or with an input to it. They go with their session.

create table attachment (
    run_id        text collate "C" not null references run (id),
    number        bigint not null check (number >= 0), -- in the run, those of its inputs counted with it
    session_id    text collate "C" not null references session (id),
    project_id    text collate "C" not null references project (id),
    input_seq     bigint, -- the input that it came with; null: the run's task
    name          text collate "C" not null,
    media_type    text collate "C", -- of an image; null: a file
    size_bytes    bigint not null check (size_bytes >= 0),
    sha256        text collate "C" not null,
    created_at_ms bigint not null,
    primary key (run_id, number)
);

create index attachment_of_session on attachment (session_id);
create index attachment_of_project on attachment (project_id, size_bytes);

create table attachment_part (
    run_id     text collate "C" not null,
    attachment bigint not null, -- its number in the run
    number     bigint not null, -- from 0; together they are the attachment
    project_id text collate "C" not null references project (id),
    content    text collate "C" not null, -- in base64
    primary key (run_id, attachment, number),
    foreign key (run_id, attachment) references attachment (run_id, number)
);
