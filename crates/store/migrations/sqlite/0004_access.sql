-- The audit log becomes a chain of hashes that the database itself keeps from being changed, and API keys expire.

-- Records of earlier versions stay as they are. The first start that knows its server's id copies them, in their order,
-- to the beginning of its chain: the hashes are not the database's to make.
alter table audit rename to audit_before;

create trigger audit_before_closed before insert on audit_before
begin select raise(abort, 'audit_before is closed: records go to audit'); end;
create trigger audit_before_kept before update on audit_before
begin select raise(abort, 'audit records are never changed'); end;
create trigger audit_before_left before delete on audit_before
begin select raise(abort, 'audit records are never deleted'); end;

-- One chain for each server. What the hash covers, and in which form, is told in docs/audit.md. The ids have no foreign
-- keys: a record outlives what it tells of.
create table audit (
    number      integer primary key autoincrement, -- in the order of writing, over all chains
    chain       text not null,
    seq         integer not null check (seq >= 1),
    project_id  text not null references project (id),
    at_ms       integer not null,
    actor       text not null,
    actor_name  text,
    action      text not null,
    subject     text not null,
    run_id      text,
    session_id  text,
    credential  text,
    host        text,
    ref_name    text,
    decision    text,
    before_number integer unique, -- its number in audit_before
    prev_hash   text not null check (length(prev_hash) = 64),
    hash        text not null check (length(hash) = 64),
    unique (chain, seq)
) strict;

create index audit_of_project on audit (project_id, number);
create index audit_of_run on audit (run_id, number) where run_id is not null;

create trigger audit_kept before update on audit
begin select raise(abort, 'audit records are never changed'); end;
create trigger audit_left before delete on audit
begin select raise(abort, 'audit records are never deleted'); end;
-- What replaces a row deletes it without the trigger above being asked.
create trigger audit_appended before insert on audit
when exists (select 1 from audit where number = new.number)
    or new.seq <> coalesce((select max(seq) from audit where chain = new.chain), 0) + 1
begin select raise(abort, 'audit records are only appended'); end;

alter table api_key add column expires_at_ms integer;
