-- The structured output of a run, and workflows that belong to their project and not to the server's settings.

alter table run add column output text collate "C" check (output is null or cast(output as json) is not null); -- checked by the worker before a run succeeds

alter table workflow add column is_own bigint not null default 0 check (is_own in (0, 1)); -- put through the API
alter table workflow add column server_definition text collate "C" check (server_definition is null or cast(server_definition as json) is not null); -- what the settings say

update workflow set server_definition = definition;
