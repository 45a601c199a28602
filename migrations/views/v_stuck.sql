-- Must be empty. A row means that something which repairs by itself has not done so.
-- for_s: how long it has been past its limit's start.
SELECT 'episode' AS kind, key AS object, 'lease overdue, nobody reaped it' AS reason,
       round(({now_ms} - lease_until_ms) / 1000.0, 1) AS for_s
FROM episode
WHERE state IN ('synthesising', 'encoding') AND lease_until_ms < {now_ms} - 5000
UNION ALL
SELECT 'episode', key, 'not read for a day', round(({now_ms} - state_ms) / 1000.0, 1)
FROM episode
WHERE state = 'received' AND state_ms < {now_ms} - 90000000
UNION ALL
SELECT 'episode', key, 'queued for too long', round(({now_ms} - state_ms) / 1000.0, 1)
FROM episode
WHERE state = 'queued' AND wanted = 'run'
  AND state_ms < {now_ms} - CASE queue WHEN 'realtime' THEN 600000
                                       WHEN 'quarantine' THEN 3600000
                                       ELSE 86400000 END
UNION ALL
SELECT 'episode', key, 'spoken for over two hours', round(({now_ms} - state_ms) / 1000.0, 1)
FROM episode
WHERE state = 'synthesising' AND state_ms < {now_ms} - 7200000
UNION ALL
SELECT 'episode', key, 'encoded for over half an hour', round(({now_ms} - state_ms) / 1000.0, 1)
FROM episode
WHERE state = 'encoding' AND state_ms < {now_ms} - 1800000
UNION ALL
SELECT 'episode', key, 'failed and not queued again', round(({now_ms} - next_ms) / 1000.0, 1)
FROM episode
WHERE state = 'failed' AND next_ms < {now_ms} - 60000
UNION ALL
SELECT 'episode', key, 'stored and not ended for a day', round(({now_ms} - state_ms) / 1000.0, 1)
FROM episode
WHERE state IN ('stored', 'written_back') AND state_ms < {now_ms} - 90000000
UNION ALL
SELECT 'effect', id, 'uncertain: sent or not, a person must look',
       round(({now_ms} - created_ms) / 1000.0, 1)
FROM effect
WHERE state = 'uncertain'
UNION ALL
SELECT 'effect', id, 'lease overdue, nobody reaped it',
       round(({now_ms} - lease_until_ms) / 1000.0, 1)
FROM effect
WHERE state = 'running' AND lease_until_ms < {now_ms} - 5000
UNION ALL
SELECT 'effect', id, 'due and not carried out', round(({now_ms} - next_ms) / 1000.0, 1)
FROM effect
WHERE state IN ('due', 'failed') AND next_ms < {now_ms} - 600000
UNION ALL
SELECT 'row', ref_key, coalesce('not read: ' || error, 'not read'),
       round(({now_ms} - created_ms) / 1000.0, 1)
FROM reading
WHERE next_ms IS NULL OR next_ms < {now_ms} - 600000
UNION ALL
SELECT 'endpoint', p.name, d.kind || ' overdue, no io worker does it',
       round(({now_ms} - d.next_ms) / 1000.0, 1)
FROM duty d
JOIN endpoint p ON p.id = d.endpoint_id
WHERE d.next_ms < {now_ms} - 600000 AND d.lease_until_ms < {now_ms}
UNION ALL
SELECT 'episode', key, 'its time has come and it waits', round(({now_ms} - next_ms) / 1000.0, 1)
FROM episode
WHERE state = 'waiting' AND next_ms < {now_ms} - 60000
UNION ALL
SELECT 'outbox', topic, 'wake-up not sent', round(({now_ms} - due_ms) / 1000.0, 1)
FROM outbox
WHERE due_ms < {now_ms} - 60000
UNION ALL
SELECT 'worker', id, 'silent and not marked gone', round(({now_ms} - seen_ms) / 1000.0, 1)
FROM worker
WHERE state <> 'gone' AND seen_ms < {now_ms} - 60000
UNION ALL
SELECT 'schedule', name, 'due and not fired', round(({now_ms} - next_ms) / 1000.0, 1)
FROM schedule
WHERE enabled = 1 AND next_ms < {now_ms} - 60000
UNION ALL
SELECT 'run', id, 'not expanded', round(({now_ms} - created_ms) / 1000.0, 1)
FROM batch_run
WHERE state IN ('due', 'selecting') AND created_ms < {now_ms} - 600000
