-- Everything that happened to an episode; ask for one key, ordered by at_ms and step.
-- step puts what happened within one millisecond into its natural order.
SELECT e.key AS episode, d.received_ms AS at_ms, 1 AS step, 'delivery' AS what,
       CASE WHEN d.repeats > 0 THEN 'received, repeated ' || CAST(d.repeats AS TEXT) || ' times'
            ELSE 'received' END AS detail
FROM episode e
JOIN delivery d ON d.id = e.delivery_id
UNION ALL
SELECT e.key, l.ms, 2, 'state',
       l.to_state || ' by ' || l.actor || coalesce(': ' || l.reason, '')
FROM episode e
JOIN episode_log l ON l.episode_id = e.id
UNION ALL
SELECT e.key, a.started_ms, 3, 'attempt',
       'fence ' || CAST(a.fence AS TEXT) || ' started at sentence ' || CAST(a.first_segment AS TEXT)
FROM episode e
JOIN attempt a ON a.episode_id = e.id
UNION ALL
SELECT e.key, s.committed_ms, 4, 'sentence',
       CAST(s.n AS TEXT) || ' stored under fence ' || CAST(s.fence AS TEXT)
FROM episode e
JOIN segment s ON s.episode_id = e.id
UNION ALL
SELECT e.key, a.ended_ms, 5, 'attempt',
       'fence ' || CAST(a.fence AS TEXT) || ' ended: ' || coalesce(a.outcome, 'unknown')
           || coalesce(', ' || a.error_code, '')
FROM episode e
JOIN attempt a ON a.episode_id = e.id
WHERE a.ended_ms IS NOT NULL
UNION ALL
SELECT e.key, coalesce(x.done_ms, x.next_ms), 6, 'effect',
       x.kind || ' ' || x.state || ', tries ' || CAST(x.tries AS TEXT)
           || coalesce(', ' || x.error_code, '')
FROM episode e
JOIN effect x ON x.episode_id = e.id
UNION ALL
SELECT e.key, c.received_ms, 7, 'order', c.op || ' by ' || c.actor
FROM episode e
JOIN command c ON c.episode_id = e.id
UNION ALL
SELECT e.key, c.applied_ms, 8, 'order',
       c.op || ' followed' || coalesce(' under fence ' || CAST(c.applied_fence AS TEXT), '')
FROM episode e
JOIN command c ON c.episode_id = e.id
WHERE c.applied_ms IS NOT NULL
