-- The queue by which workers ask for tasks: who fits, what is due, and when nobody gets anything.

-- `ready`: whether a queued task's time has come, so that a claim never reads past those that wait. It only keeps the
-- claim's index short: a task is due by `not_before` and `retry_at`, and the sweeper sets `ready` when they have passed.
ALTER TABLE llm_tasks
    ADD COLUMN ready       boolean NOT NULL DEFAULT true,
    ADD COLUMN progress    jsonb,
    ADD COLUMN progress_at bigint;

-- `deadline_at`: when the attempt is over however often it is heartbeated; null for whoever leased a single task.
-- `serial`: leased by a worker that takes the tasks of one context one at a time.
-- `outcome`: how the attempt ended; `reason` is what there is to say about it.
ALTER TABLE leases
    ADD COLUMN deadline_at bigint,
    ADD COLUMN serial      boolean NOT NULL DEFAULT false,
    ADD COLUMN outcome     varchar CHECK (outcome IN ('success', 'error', 'expired', 'deadline', 'released', 'cancelled'));

UPDATE llm_tasks SET ready = false WHERE status = 'queued' AND greatest(not_before, retry_at) > bloom_now_ms();

-- Tasks that any worker with the same labels could take stand together: a claim looks at the first of each kind, and
-- never reads past those that are for others. Hashed, because labels may be longer than an index entry.
CREATE FUNCTION bloom_kind(labels jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN labels = '[]'::jsonb THEN '' ELSE md5(labels::text) END
$$;

CREATE INDEX llm_tasks_ready ON llm_tasks
    (coalesce(pinned_worker_id, ''), bloom_kind(labels), priority DESC, created_at, id) WHERE status = 'queued' AND ready;
CREATE INDEX llm_tasks_waiting ON llm_tasks (greatest(not_before, retry_at)) WHERE status = 'queued' AND NOT ready;
DROP INDEX llm_tasks_queue;

-- Workers that take a context's tasks one at a time are told apart by nobody's reading, but by this.
CREATE UNIQUE INDEX leases_one_serial_per_context ON leases (md5(context_id)) WHERE status = 'active' AND serial;

-- The whole queue can be paused, until a time or until somebody resumes it.
CREATE TABLE queue_state (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),  -- there is one row
    paused boolean NOT NULL DEFAULT false,
    until  bigint,
    reason text
);
INSERT INTO queue_state DEFAULT VALUES;

CREATE FUNCTION bloom_queue_is_open() RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    RETURN NOT EXISTS (SELECT FROM queue_state WHERE paused AND coalesce(until > bloom_now_ms(), true));
END
$$;

-- One index for each filter of a list. Hashed where a value of an adopted row may be longer than an index entry.
CREATE INDEX llm_tasks_by_context ON llm_tasks (md5(context_id), created_at DESC, id DESC) WHERE context_id <> '';
CREATE INDEX llm_tasks_by_agent   ON llm_tasks (md5(agent_slug), created_at DESC, id DESC) WHERE agent_slug <> '';
CREATE INDEX llm_tasks_by_worker  ON llm_tasks (worker_id, created_at DESC, id DESC) WHERE worker_id IS NOT NULL;
CREATE INDEX leases_by_status     ON leases (status, started_at DESC, id DESC);
CREATE INDEX leases_of_worker     ON leases (worker_id, started_at DESC, id DESC);

-- A heartbeat changes no indexed column, so that it costs one row and no index. The sweeper reads the active leases
-- instead, which are as few as the workers can hold.
DROP INDEX leases_by_expiry;
ALTER TABLE leases  SET (fillfactor = 80);
ALTER TABLE workers SET (fillfactor = 50);
