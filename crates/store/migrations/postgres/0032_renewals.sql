-- Of all servers on a database one at a time has a credential's access token renewed: an endpoint may take a refresh token once only.
alter table credential add column renewal_epoch bigint not null default 0;
alter table credential add column renewing_until_ms bigint;

-- The branch that the run has begun a repository with: there was none in it, as its git host said when the push was forwarded.
alter table run add column began_repository bigint not null default 0;

-- How many of a run's uses of a credential the audit log has told of after the run's end.
alter table credential_use add column told_uses bigint not null default 0;
