-- Records of one action, and of one actor, are found without walking a log that is never shortened.
create index audit_of_action on audit (project_id, action, number);
create index audit_of_actor on audit (project_id, actor, number);
