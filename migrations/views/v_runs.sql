-- Batch runs and how far they are; total, done and failed count notes.
SELECT r.id AS run,
       t.name AS tenant,
       s.name AS schedule,
       r.fire_ms AS fired_at_ms,
       r.forced,
       r.state,
       r.total,
       r.done,
       r.failed,
       r.total - r.done - r.failed AS open,
       CASE WHEN r.total > 0 THEN round(100.0 * (r.done + r.failed) / r.total, 1) END AS percent,
       round((coalesce(r.ended_ms, {now_ms}) - r.started_ms) / 1000.0, 1) AS seconds,
       r.ended_ms AS ended_at_ms,
       r.error
FROM batch_run r
JOIN schedule s ON s.id = r.schedule_id
JOIN tenant t ON t.id = r.tenant_id
