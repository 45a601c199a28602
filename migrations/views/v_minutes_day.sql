-- Minutes spoken per team, day, endpoint and engine. Kept when episodes are long erased.
-- real_time_factor: seconds of speech per second of work.
SELECT t.name AS tenant,
       u.day,
       e.name AS endpoint,
       u.engine,
       u.episodes,
       round(u.audio_ms / 60000.0, 2) AS minutes,
       u.chars,
       round(u.busy_ms / 60000.0, 2) AS busy_minutes,
       CASE WHEN u.busy_ms > 0 THEN round(1.0 * u.audio_ms / u.busy_ms, 2) END AS real_time_factor,
       round(u.stored_bytes / 1048576.0, 2) AS stored_mib
FROM usage_day u
JOIN tenant t ON t.id = u.tenant_id
JOIN endpoint e ON e.id = u.endpoint_id
