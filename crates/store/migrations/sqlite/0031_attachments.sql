-- Attachments: images and files that came with a run's task or with an input to it. They go with their session.

create table attachment (
    run_id        text not null references run (id),
    number        integer not null check (number >= 0), -- in the run, those of its inputs counted with it
    session_id    text not null references session (id),
    project_id    text not null references project (id),
    input_seq     integer, -- the input that it came with; null: the run's task
    name          text not null,
    media_type    text, -- of an image; null: a file
    size_bytes    integer not null check (size_bytes >= 0),
    sha256        text not null,
    created_at_ms integer not null,
    primary key (run_id, number)
) strict, without rowid;

create index attachment_of_session on attachment (session_id);
create index attachment_of_project on attachment (project_id, size_bytes);

create table attachment_part (
    run_id     text not null,
    attachment integer not null, -- its number in the run
    number     integer not null, -- from 0; together they are the attachment
    project_id text not null references project (id),
    content    text not null, -- in base64
    primary key (run_id, attachment, number),
    foreign key (run_id, attachment) references attachment (run_id, number)
) strict;
