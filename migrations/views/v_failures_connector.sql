-- What went wrong, per endpoint, day (UTC) and reason. A day without failures has no row.
-- share_lost: episodes of this reason that no automatic try will finish, of all of that day.
WITH trouble AS (
    SELECT id AS episode_id,
           coalesce(error_code, 'unknown') AS error_code,
           CASE WHEN state = 'dead' THEN 1 ELSE 0 END AS dead,
           CASE WHEN state = 'failed' THEN 1 ELSE 0 END AS to_retry,
           0 AS attempts_failed, 0 AS crashes, 0 AS effects_failed
    FROM episode
    WHERE state IN ('dead', 'failed')
    UNION ALL
    SELECT episode_id,
           CASE WHEN outcome = 'reaped' THEN 'crash' ELSE coalesce(error_code, 'unknown') END,
           0, 0,
           CASE WHEN outcome = 'reaped' THEN 0 ELSE 1 END,
           CASE WHEN outcome = 'reaped' THEN 1 ELSE 0 END,
           0
    FROM attempt
    WHERE outcome IN ('failed', 'dead', 'reaped')
    UNION ALL
    SELECT episode_id, coalesce(error_code, state), 0, 0, 0, 0, 1
    FROM effect
    WHERE state IN ('failed', 'uncertain', 'dead')
), of_day AS (
    SELECT e.endpoint_id,
           e.day,
           count(*) AS episodes,
           sum(CASE WHEN d.repeats IS NULL THEN 0 ELSE d.repeats END) AS repeats
    FROM episode e
    LEFT JOIN delivery d ON d.id = e.delivery_id
    GROUP BY e.endpoint_id, e.day
)
SELECT t.name AS tenant,
       p.connector,
       p.name AS endpoint,
       e.day,
       x.error_code,
       max(o.episodes) AS episodes,
       max(o.repeats) AS repeated_deliveries,
       sum(x.dead) AS dead,
       sum(x.to_retry) AS to_retry,
       sum(x.attempts_failed) AS attempts_failed,
       sum(x.crashes) AS crashes,
       sum(x.effects_failed) AS effects_failed,
       round(1.0 * sum(x.dead) / max(o.episodes), 4) AS share_lost
FROM trouble x
JOIN episode e ON e.id = x.episode_id
JOIN of_day o ON o.endpoint_id = e.endpoint_id AND o.day = e.day
JOIN endpoint p ON p.id = e.endpoint_id
JOIN tenant t ON t.id = e.tenant_id
GROUP BY t.name, p.connector, p.name, e.day, x.error_code
