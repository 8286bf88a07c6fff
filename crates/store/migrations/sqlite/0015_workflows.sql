-- The structured output of a run, and workflows that belong to their project and not to the server's settings.

alter table run add column output text check (output is null or json_valid(output)); -- checked by the worker before a run succeeds

alter table workflow add column is_own integer not null default 0 check (is_own in (0, 1)); -- put through the API
alter table workflow add column server_definition text check (server_definition is null or json_valid(server_definition)); -- what the settings say

update workflow set server_definition = definition;
