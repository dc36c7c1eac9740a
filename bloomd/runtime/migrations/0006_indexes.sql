-- One index for each way in which rows are asked for.

CREATE INDEX llm_tasks_newest    ON llm_tasks (created_at DESC, id DESC);
CREATE INDEX llm_tasks_by_status ON llm_tasks (status, created_at DESC, id DESC);
CREATE INDEX llm_tasks_queue     ON llm_tasks (priority DESC, created_at, id) WHERE status = 'queued';

CREATE INDEX leases_newest    ON leases (started_at DESC, id DESC);
CREATE INDEX leases_by_task   ON leases (task_id);
CREATE INDEX leases_by_worker ON leases (worker_id) WHERE status = 'active';
CREATE INDEX leases_by_expiry ON leases (expires_at) WHERE status = 'active';
CREATE INDEX leases_by_context ON leases USING hash (context_id) WHERE status = 'active';  -- of any length
CREATE INDEX leases_lost      ON leases (ended_at) WHERE status = 'expired';

CREATE INDEX workers_newest ON workers (registered_at DESC, id DESC);

CREATE INDEX runtime_artifacts_newest  ON runtime_artifacts (created_at DESC, id DESC);
CREATE INDEX runtime_artifacts_by_task ON runtime_artifacts (task_id, created_at DESC, id DESC);

CREATE INDEX llm_results_by_task ON llm_results (task_id);

CREATE INDEX audit_logs_newest    ON audit_logs (timestamp DESC, id DESC);
CREATE INDEX audit_logs_by_entity ON audit_logs (entity_id, timestamp DESC, id DESC);
CREATE INDEX audit_logs_by_action ON audit_logs (action, timestamp DESC, id DESC);
