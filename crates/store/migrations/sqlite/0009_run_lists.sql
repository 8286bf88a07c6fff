-- Lists of runs by one field, newest first: each reads its own rows alone, however many others there are.
create index run_of_status on run (project_id, status, id);
create index run_of_workflow on run (project_id, workflow, id);
create index run_of_repository on run (project_id, repository, id);
