-- What became of the repository's checks, and the image that the repository chose.

alter table run add column checks text collate "C" check (checks is null or cast(checks as json) is not null); -- as the sandbox tells it; shown, never acted on
alter table run add column repository_image text collate "C"; -- asked for by the sandbox, allowed by the operator's settings
