-- How long episodes wait, per queue and hour (UTC, of arrival), in milliseconds:
-- queued -> started, started -> first audio, first audio -> stored.
-- A percentile is the smallest value with at least that share of the episodes at or below it.
WITH span AS (
    SELECT queue, day, hour, 'queued to started' AS stage, started_ms - queued_ms AS ms
    FROM episode
    WHERE started_ms >= queued_ms
    UNION ALL
    SELECT queue, day, hour, 'started to first audio', first_audio_ms - started_ms
    FROM episode
    WHERE first_audio_ms >= started_ms
    UNION ALL
    SELECT queue, day, hour, 'first audio to stored', stored_ms - first_audio_ms
    FROM episode
    WHERE stored_ms >= first_audio_ms
), ranked AS (
    SELECT queue, day, hour, stage, ms,
           row_number() OVER (PARTITION BY queue, hour, stage ORDER BY ms) AS place,
           count(*) OVER (PARTITION BY queue, hour, stage) AS episodes
    FROM span
)
SELECT queue,
       day,
       hour,
       stage,
       count(*) AS episodes,
       min(CASE WHEN place >= 0.50 * episodes THEN ms END) AS p50_ms,
       min(CASE WHEN place >= 0.95 * episodes THEN ms END) AS p95_ms,
       min(CASE WHEN place >= 0.99 * episodes THEN ms END) AS p99_ms,
       max(ms) AS max_ms
FROM ranked
GROUP BY queue, day, hour, stage
