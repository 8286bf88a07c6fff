-- Keys that nobody has, as fill.py makes them.
insert into api_key (id, project_id, name, scopes, secret_hash, created_at_ms, revoked_at_ms)
    select 'key_' || lpad(to_hex(n), 32, '0'), 'default', 'key', '[]', lpad(to_hex(n), 64, '0'), 0, 1
    from generate_series(1, 1000) as numbers (n);
