-- loses: priorities of tasks that have not ended
--  FROM llm_tasks WHERE priority <> 0 AND status IN ('queued', 'leased', 'running')
-- loses: labels of tasks that have not ended: any worker takes them
--  FROM llm_tasks WHERE labels <> '[]' AND status IN ('queued', 'leased', 'running')
-- loses: pins of tasks that have not ended to a worker: any other takes them, too
--  FROM llm_tasks WHERE pinned_worker_id IS NOT NULL AND status IN ('queued', 'leased', 'running')
-- loses: times before which queued tasks should wait
--  FROM llm_tasks WHERE status = 'queued' AND greatest(not_before, retry_at) > bloom_now_ms()
-- loses: idempotency keys of tasks: who repeats a request makes another task
--  FROM llm_tasks WHERE idempotency_key IS NOT NULL
-- loses: error messages of tasks
--  FROM llm_tasks WHERE error_message IS NOT NULL
-- loses: numbers, ends and reasons of leases
--  FROM leases WHERE attempt IS NOT NULL OR ended_at IS NOT NULL OR reason IS NOT NULL
-- loses: cordons and drains of workers: they get tasks again
--  FROM workers WHERE cordoned OR draining
-- loses: names and leases of artifacts
--  FROM runtime_artifacts WHERE name IS NOT NULL OR lease_id IS NOT NULL
-- loses: leases of results
--  FROM llm_results WHERE lease_id IS NOT NULL

ALTER TABLE llm_tasks
    DROP COLUMN priority,
    DROP COLUMN labels,
    DROP COLUMN pinned_worker_id,
    DROP COLUMN not_before,
    DROP COLUMN retry_at,
    DROP COLUMN idempotency_key,
    DROP COLUMN error_message;

ALTER TABLE leases            DROP COLUMN attempt, DROP COLUMN ended_at, DROP COLUMN reason;
ALTER TABLE workers           DROP COLUMN cordoned, DROP COLUMN draining, DROP COLUMN source, DROP COLUMN alive_at,
                              DROP COLUMN membridge_online_at;
ALTER TABLE runtime_artifacts DROP COLUMN lease_id, DROP COLUMN name, DROP COLUMN size, DROP COLUMN sha256;
ALTER TABLE llm_results       DROP COLUMN lease_id, DROP COLUMN task_state;
