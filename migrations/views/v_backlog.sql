-- What waits and what is being spoken, per team and queue. estimated_minutes is speech, not waiting.
SELECT t.name AS tenant,
       e.queue,
       sum(CASE WHEN e.state = 'received' THEN 1 ELSE 0 END) AS to_read,
       sum(CASE WHEN e.state = 'queued' THEN 1 ELSE 0 END) AS queued,
       sum(CASE WHEN e.state IN ('synthesising', 'encoding') THEN 1 ELSE 0 END) AS speaking,
       sum(CASE WHEN e.state = 'failed' THEN 1 ELSE 0 END) AS to_retry,
       round(max(CASE WHEN e.state = 'queued' AND e.wanted = 'run'
                      THEN {now_ms} - e.queued_ms END) / 1000.0, 1) AS oldest_s,
       round(sum(CASE WHEN e.state IN ('received', 'queued', 'failed') THEN e.estimated_ms
                      ELSE 0 END) / 60000.0, 1) AS estimated_minutes
FROM episode e
JOIN tenant t ON t.id = e.tenant_id
WHERE e.state IN ('received', 'queued', 'synthesising', 'encoding', 'failed')
GROUP BY t.name, e.queue
