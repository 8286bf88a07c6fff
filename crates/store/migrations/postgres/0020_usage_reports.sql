-- What the calls of a project in a time add up to: a report reads its own rows alone, however many others there are.
create index usage_of_project on usage (project_id, begun_at_ms);
