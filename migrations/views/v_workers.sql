-- Process incarnations, what they hold and when they were last heard of.
SELECT w.id,
       w.host,
       w.pid,
       w.kind,
       w.state,
       w.engine,
       w.slots,
       count(e.id) AS speaking,
       round(({now_ms} - w.seen_ms) / 1000.0, 1) AS seen_s_ago,
       round(({now_ms} - w.took_ms) / 1000.0, 1) AS took_s_ago,
       w.started_ms AS started_at_ms,
       w.build
FROM worker w
LEFT JOIN episode e ON e.lease_owner = w.id AND e.state IN ('synthesising', 'encoding')
GROUP BY w.id, w.host, w.pid, w.kind, w.state, w.engine, w.slots, w.seen_ms, w.took_ms,
         w.started_ms, w.build
