-- The invariants as the database itself keeps them: no session, not even psql, gets round these.

ALTER TABLE llm_tasks
    ALTER COLUMN context_id     SET DEFAULT '',
    ALTER COLUMN context_id     SET NOT NULL,
    ALTER COLUMN agent_slug     SET DEFAULT '',
    ALTER COLUMN agent_slug     SET NOT NULL,
    ALTER COLUMN prompt         SET NOT NULL,
    ALTER COLUMN context_hints  SET DEFAULT '[]',
    ALTER COLUMN context_hints  SET NOT NULL,
    ALTER COLUMN policy         SET DEFAULT '{"timeout_sec": 120, "budget": 0}',
    ALTER COLUMN policy         SET NOT NULL,
    ALTER COLUMN desired_format SET DEFAULT 'text',
    ALTER COLUMN desired_format SET NOT NULL,
    ALTER COLUMN status         SET DEFAULT 'queued',
    ALTER COLUMN status         SET NOT NULL,
    ALTER COLUMN created_at     SET DEFAULT bloom_now_ms(),
    ALTER COLUMN created_at     SET NOT NULL,
    ALTER COLUMN updated_at     SET DEFAULT bloom_now_ms(),
    ALTER COLUMN updated_at     SET NOT NULL,
    ALTER COLUMN attempts       SET DEFAULT 0,
    ALTER COLUMN attempts       SET NOT NULL,
    ALTER COLUMN max_attempts   SET DEFAULT 3,
    ALTER COLUMN max_attempts   SET NOT NULL,
    ADD CONSTRAINT llm_tasks_policy CHECK (bloom_is_policy(policy)),
    ADD CONSTRAINT llm_tasks_context_hints CHECK (bloom_is_texts(context_hints)),
    ADD CONSTRAINT llm_tasks_labels CHECK (bloom_is_texts(labels)),
    ADD CONSTRAINT llm_tasks_desired_format CHECK (desired_format IN ('json', 'text')),
    ADD CONSTRAINT llm_tasks_status
        CHECK (status IN ('queued', 'leased', 'running', 'completed', 'failed', 'dead', 'cancelled')),
    ADD CONSTRAINT llm_tasks_lease
        CHECK (CASE WHEN status IN ('leased', 'running') THEN lease_id IS NOT NULL WHEN status = 'queued' THEN lease_id IS NULL
                    ELSE true END);

ALTER TABLE leases
    ALTER COLUMN task_id     SET NOT NULL,
    ALTER COLUMN worker_id   SET NOT NULL,
    ALTER COLUMN started_at  SET DEFAULT bloom_now_ms(),
    ALTER COLUMN started_at  SET NOT NULL,
    ALTER COLUMN expires_at  SET NOT NULL,
    ALTER COLUMN ttl_seconds SET NOT NULL,
    ALTER COLUMN status      SET DEFAULT 'active',
    ALTER COLUMN status      SET NOT NULL,
    ADD CONSTRAINT leases_status CHECK (status IN ('active', 'expired', 'released', 'failed'));

ALTER TABLE workers
    ALTER COLUMN node_id       SET NOT NULL,
    ALTER COLUMN url           SET DEFAULT '',
    ALTER COLUMN url           SET NOT NULL,
    ALTER COLUMN status        SET DEFAULT 'unknown',
    ALTER COLUMN status        SET NOT NULL,
    ALTER COLUMN capabilities  SET DEFAULT '{"claude_cli": true, "max_concurrency": 1, "labels": []}',
    ALTER COLUMN capabilities  SET NOT NULL,
    ALTER COLUMN ip_addrs      SET DEFAULT '[]',
    ALTER COLUMN ip_addrs      SET NOT NULL,
    ALTER COLUMN obs_count     SET DEFAULT 0,
    ALTER COLUMN obs_count     SET NOT NULL,
    ALTER COLUMN db_sha        SET DEFAULT '',
    ALTER COLUMN db_sha        SET NOT NULL,
    ALTER COLUMN registered_at SET DEFAULT bloom_now_ms(),
    ALTER COLUMN registered_at SET NOT NULL,
    ALTER COLUMN active_leases SET DEFAULT 0,
    ALTER COLUMN active_leases SET NOT NULL,
    ADD CONSTRAINT workers_capabilities CHECK (jsonb_typeof(capabilities) = 'object'),
    ADD CONSTRAINT workers_ip_addrs CHECK (jsonb_typeof(ip_addrs) = 'array'),
    ADD CONSTRAINT workers_status CHECK (status IN ('online', 'offline', 'syncing', 'error', 'unknown')),
    ADD CONSTRAINT workers_source CHECK (source IN ('direct', 'membridge')),
    ADD CONSTRAINT workers_active_leases CHECK (active_leases >= 0);

ALTER TABLE runtime_artifacts
    ALTER COLUMN task_id     SET NOT NULL,
    ALTER COLUMN type        SET DEFAULT 'LLM_RESULT',
    ALTER COLUMN type        SET NOT NULL,
    ALTER COLUMN created_at  SET DEFAULT bloom_now_ms(),
    ALTER COLUMN created_at  SET NOT NULL,
    ALTER COLUMN finalized   SET DEFAULT true,
    ALTER COLUMN finalized   SET NOT NULL,
    ALTER COLUMN entity_refs SET DEFAULT '[]',
    ALTER COLUMN entity_refs SET NOT NULL,
    ALTER COLUMN tags        SET DEFAULT '[]',
    ALTER COLUMN tags        SET NOT NULL,
    ADD CONSTRAINT runtime_artifacts_entity_refs CHECK (jsonb_typeof(entity_refs) = 'array'),
    ADD CONSTRAINT runtime_artifacts_tags CHECK (jsonb_typeof(tags) = 'array');

ALTER TABLE audit_logs
    ALTER COLUMN timestamp   SET DEFAULT bloom_now_ms(),
    ALTER COLUMN timestamp   SET NOT NULL,
    ALTER COLUMN action      SET NOT NULL,
    ALTER COLUMN entity_type SET DEFAULT '',
    ALTER COLUMN entity_type SET NOT NULL,
    ALTER COLUMN entity_id   SET DEFAULT '',
    ALTER COLUMN entity_id   SET NOT NULL,
    ALTER COLUMN actor       SET DEFAULT '',
    ALTER COLUMN actor       SET NOT NULL;

-- Invariant 1: a task has at most one active lease.
CREATE UNIQUE INDEX leases_one_active_per_task ON leases (task_id) WHERE status = 'active';

-- Invariant 4: one result, with one artifact of each name, for an attempt.
CREATE UNIQUE INDEX llm_results_one_per_lease ON llm_results (lease_id);
CREATE UNIQUE INDEX runtime_artifacts_one_per_lease_and_name ON runtime_artifacts (lease_id, name);

CREATE UNIQUE INDEX llm_tasks_idempotency ON llm_tasks (idempotency_key);

-- Invariant 2: the count of a worker's active leases is kept here and nowhere else, and never raised past its capacity.
-- Workers are locked in the order of their ids, so that statements over many leases cannot deadlock each other.
CREATE FUNCTION bloom_move_leases(worker_ids varchar[], changes bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    worker record;
    known  integer := 0;
BEGIN
    FOR worker IN
        SELECT workers.id, workers.active_leases AS held, bloom_capacity(workers.capabilities) AS capacity, moved.change
          FROM workers
          JOIN unnest(worker_ids, changes) AS moved (worker_id, change) ON moved.worker_id = workers.id
         ORDER BY workers.id
           FOR UPDATE OF workers
    LOOP
        known := known + 1;
        IF worker.change > 0 AND worker.held + worker.change > worker.capacity THEN
            RAISE EXCEPTION 'worker % has no free capacity: it holds % of % leases', worker.id, worker.held, worker.capacity
                  USING ERRCODE = 'check_violation', CONSTRAINT = 'workers_capacity';
        END IF;
        UPDATE workers SET active_leases = greatest(0, active_leases + worker.change) WHERE id = worker.id;
    END LOOP;
    IF known < cardinality(worker_ids) AND 0 < ANY (changes) THEN
        RAISE EXCEPTION 'an active lease needs a worker that exists' USING ERRCODE = 'foreign_key_violation';
    END IF;
END
$$;

CREATE FUNCTION bloom_leases_inserted() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM bloom_move_leases(array_agg(worker_id), array_agg(change))
       FROM (SELECT worker_id, count(*) AS change FROM arrived WHERE status = 'active' GROUP BY worker_id) AS moved
     HAVING count(*) > 0;
    RETURN NULL;
END
$$;

CREATE FUNCTION bloom_leases_updated() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM bloom_move_leases(array_agg(worker_id), array_agg(change))
       FROM (SELECT worker_id, sum(change) AS change
               FROM (SELECT worker_id, 1 AS change FROM arrived WHERE status = 'active'
                     UNION ALL
                     SELECT worker_id, -1 FROM departed WHERE status = 'active') AS each
              GROUP BY worker_id
             HAVING sum(change) <> 0) AS moved
     HAVING count(*) > 0;
    RETURN NULL;
END
$$;

CREATE FUNCTION bloom_leases_deleted() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM bloom_move_leases(array_agg(worker_id), array_agg(change))
       FROM (SELECT worker_id, -count(*) AS change FROM departed WHERE status = 'active' GROUP BY worker_id) AS moved
     HAVING count(*) > 0;
    RETURN NULL;
END
$$;

CREATE TRIGGER leases_inserted AFTER INSERT ON leases
    REFERENCING NEW TABLE AS arrived FOR EACH STATEMENT EXECUTE FUNCTION bloom_leases_inserted();
CREATE TRIGGER leases_updated AFTER UPDATE ON leases
    REFERENCING NEW TABLE AS arrived OLD TABLE AS departed FOR EACH STATEMENT EXECUTE FUNCTION bloom_leases_updated();
CREATE TRIGGER leases_deleted AFTER DELETE ON leases
    REFERENCING OLD TABLE AS departed FOR EACH STATEMENT EXECUTE FUNCTION bloom_leases_deleted();

-- The count follows the leases and nothing else. A new row of a worker begins with what its name holds already; what
-- another program writes there (the Node.js runtime does) is not taken over.
CREATE FUNCTION bloom_keep_active_leases() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        NEW.active_leases := (SELECT count(*) FROM leases WHERE worker_id = NEW.id AND status = 'active');
    ELSE
        NEW.active_leases := OLD.active_leases;
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER workers_inserted BEFORE INSERT ON workers
    FOR EACH ROW EXECUTE FUNCTION bloom_keep_active_leases();
CREATE TRIGGER workers_counted BEFORE UPDATE OF active_leases ON workers
    FOR EACH ROW WHEN (OLD.active_leases IS DISTINCT FROM NEW.active_leases AND pg_trigger_depth() = 0)
    EXECUTE FUNCTION bloom_keep_active_leases();

-- A lease without its worker or its task would never end.
CREATE FUNCTION bloom_refuse_while_leased() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% % has active leases: end them first', TG_TABLE_NAME, OLD.id USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER workers_deleted BEFORE DELETE ON workers
    FOR EACH ROW WHEN (OLD.active_leases > 0) EXECUTE FUNCTION bloom_refuse_while_leased();
CREATE TRIGGER llm_tasks_deleted BEFORE DELETE ON llm_tasks
    FOR EACH ROW WHEN (OLD.status IN ('leased', 'running')) EXECUTE FUNCTION bloom_refuse_while_leased();

-- TRUNCATE fires none of the above.
CREATE FUNCTION bloom_refuse_truncate() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM leases WHERE status = 'active') THEN
        RAISE EXCEPTION '% cannot be truncated while there are active leases', TG_TABLE_NAME
              USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER leases_truncated BEFORE TRUNCATE ON leases
    FOR EACH STATEMENT EXECUTE FUNCTION bloom_refuse_truncate();
CREATE TRIGGER workers_truncated BEFORE TRUNCATE ON workers
    FOR EACH STATEMENT EXECUTE FUNCTION bloom_refuse_truncate();
CREATE TRIGGER llm_tasks_truncated BEFORE TRUNCATE ON llm_tasks
    FOR EACH STATEMENT EXECUTE FUNCTION bloom_refuse_truncate();
