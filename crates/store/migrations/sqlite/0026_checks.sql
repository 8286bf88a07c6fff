-- What became of the repository's checks, and the image that the repository chose.

alter table run add column checks text check (checks is null or json_valid(checks)); -- as the sandbox tells it; shown, never acted on
alter table run add column repository_image text; -- asked for by the sandbox, allowed by the operator's settings
