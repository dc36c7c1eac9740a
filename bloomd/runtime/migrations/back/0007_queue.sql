-- loses: the pause of the queue: tasks are given out
--  FROM queue_state WHERE paused AND coalesce(until > bloom_now_ms(), true)
-- loses: progress that workers told of tasks
--  FROM llm_tasks WHERE progress IS NOT NULL
-- loses: outcomes of attempts
--  FROM leases WHERE outcome IS NOT NULL
-- loses: deadlines of running attempts: as long as they are heartbeated, they go on
--  FROM leases WHERE status = 'active' AND deadline_at IS NOT NULL

ALTER TABLE leases  RESET (fillfactor);
ALTER TABLE workers RESET (fillfactor);
CREATE INDEX leases_by_expiry ON leases (expires_at) WHERE status = 'active';
CREATE INDEX llm_tasks_queue  ON llm_tasks (priority DESC, created_at, id) WHERE status = 'queued';

DROP INDEX llm_tasks_by_context, llm_tasks_by_agent, llm_tasks_by_worker, leases_by_status, leases_of_worker;
DROP INDEX leases_one_serial_per_context, llm_tasks_ready, llm_tasks_waiting;
DROP FUNCTION bloom_queue_is_open, bloom_kind;
DROP TABLE queue_state;

ALTER TABLE leases    DROP COLUMN deadline_at, DROP COLUMN serial, DROP COLUMN outcome;
ALTER TABLE llm_tasks DROP COLUMN ready, DROP COLUMN progress, DROP COLUMN progress_at;
