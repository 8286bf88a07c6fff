-- From which place each part of a server tells that it is alive: a machine and a state directory. Two places that tell so at
-- once are two servers with one id.

alter table server_role add column place text; -- null: told by a version that did not say
