-- Soft limits: the share of a budget at which a run's agent is told to wrap up, once, and what was spent of the
-- project's budgets before the run's first call. Runs that are there already are told nothing.

alter table run add column budget_soft_percent bigint not null default 100 check (budget_soft_percent between 1 and 100);
alter table run add column budget_soft_at_ms bigint; -- when its agent was told
alter table run add column first_call_day bigint;
alter table run add column day_spent_before_micro_usd bigint;
alter table run add column project_spent_before_micro_usd bigint;

alter table usage add column come_to_micro_usd bigint not null default 0; -- what the reply of a pending call has come to

-- Which of a project's budgets the settings set. The others belong to whoever calls the API.
alter table project add column budget_is_setting bigint not null default 0 check (budget_is_setting in (0, 1));
alter table project add column day_budget_is_setting bigint not null default 0 check (day_budget_is_setting in (0, 1));

update project set budget_is_setting = cast(budget_micro_usd is not null as integer),
    day_budget_is_setting = cast(day_budget_micro_usd is not null as integer);
