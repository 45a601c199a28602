-- What no automatic try will finish, and the command that tries again.
SELECT 'episode' AS kind,
       e.key AS object,
       t.name AS tenant,
       p.name AS endpoint,
       e.day,
       e.ended_ms AS died_at_ms,
       e.tries,
       e.error_code,
       e.error,
       'notecast episodes revive ' || e.key AS revive
FROM episode e
JOIN tenant t ON t.id = e.tenant_id
JOIN endpoint p ON p.id = e.endpoint_id
WHERE e.state = 'dead'
UNION ALL
SELECT 'effect', x.id, t.name, p.name, e.day, coalesce(x.done_ms, x.next_ms), x.tries, x.error_code, x.error,
       'notecast episodes revive ' || e.key
FROM effect x
JOIN episode e ON e.id = x.episode_id
JOIN tenant t ON t.id = e.tenant_id
JOIN endpoint p ON p.id = e.endpoint_id
WHERE x.state = 'dead'
