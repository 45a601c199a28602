-- What of an endpoint needs a person: a row stays until the thing works again.
SELECT t.name AS tenant,
       p.name AS endpoint,
       a.kind,
       a.message,
       a.first_ms AS since_at_ms,
       a.last_ms AS last_at_ms,
       a.times
FROM alarm a
JOIN endpoint p ON p.id = a.endpoint_id
JOIN tenant t ON t.id = p.tenant_id
