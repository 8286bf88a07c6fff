-- Budgets: what may be spent, what is spent, and what calls under way hold. A null budget is none. What calls hold is
-- not counted anywhere but in their own pending rows, so that it is released by settling them, whoever does it.

alter table run add column budget_micro_usd integer check (budget_micro_usd > 0);
alter table run add column model_failure text check (json_valid(model_failure)); -- why its calls were refused at last

alter table project add column budget_micro_usd integer check (budget_micro_usd >= 0);
alter table project add column day_budget_micro_usd integer check (day_budget_micro_usd >= 0);
alter table project add column cost_micro_usd integer not null default 0;

alter table usage add column reserved_micro_usd integer not null default 0;

create index usage_pending_of_project on usage (project_id, id) where state = 'pending';

create table project_day (
    project_id     text not null references project (id),
    day            integer not null, -- whole days since 1970-01-01, UTC; that of a call is the one in which it began
    cost_micro_usd integer not null,
    primary key (project_id, day)
) strict, without rowid;

insert into project_day (project_id, day, cost_micro_usd)
    select project_id, begun_at_ms / 86400000, sum(cost_micro_usd) from usage where state = 'settled'
    group by project_id, begun_at_ms / 86400000;

update project set cost_micro_usd =
    (select coalesce(sum(cost_micro_usd), 0) from project_day where project_day.project_id = project.id);
