-- The guards as 0005 has them, and the one predicate of 0002.

DROP FUNCTION bloom_misfit;
CREATE FUNCTION bloom_suits(worker_status varchar, capabilities jsonb, held integer, held_back boolean, labels jsonb)
RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT worker_status = 'online'
       AND NOT held_back
       AND coalesce(capabilities -> 'claude_cli' = 'true'::jsonb, false)
       AND held < bloom_capacity(capabilities)
       AND (labels = '[]'::jsonb OR coalesce(capabilities -> 'labels' @> labels, false))
$$;

DROP TRIGGER leases_inserted ON leases;
DROP TRIGGER leases_changed ON leases;
DROP TRIGGER leases_deleted ON leases;
DROP FUNCTION bloom_leases_inserted, bloom_lease_changed, bloom_leases_deleted, bloom_take_capacity;

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

CREATE OR REPLACE FUNCTION bloom_keep_active_leases() RETURNS trigger
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

DROP TRIGGER workers_counted ON workers;
CREATE TRIGGER workers_counted BEFORE UPDATE OF active_leases ON workers
    FOR EACH ROW WHEN (OLD.active_leases IS DISTINCT FROM NEW.active_leases AND pg_trigger_depth() = 0)
    EXECUTE FUNCTION bloom_keep_active_leases();

DROP TRIGGER llm_tasks_judged ON llm_tasks;
DROP TRIGGER llm_tasks_state_judged ON llm_tasks;
DROP TRIGGER leases_judged ON leases;
DROP TRIGGER workers_judged ON workers;
DROP TRIGGER workers_status_judged ON workers;
DROP FUNCTION bloom_judge_task, bloom_judge_task_state, bloom_judge_lease, bloom_judge_worker, bloom_judge_worker_status,
              bloom_refuse;

ALTER TABLE llm_tasks
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
    ADD CONSTRAINT leases_status CHECK (status IN ('active', 'expired', 'released', 'failed')),
    ADD CONSTRAINT leases_outcome_check
        CHECK (outcome IN ('success', 'error', 'expired', 'deadline', 'released', 'cancelled'));

ALTER TABLE workers
    ADD CONSTRAINT workers_capabilities CHECK (jsonb_typeof(capabilities) = 'object'),
    ADD CONSTRAINT workers_ip_addrs CHECK (jsonb_typeof(ip_addrs) = 'array'),
    ADD CONSTRAINT workers_status CHECK (status IN ('online', 'offline', 'syncing', 'error', 'unknown')),
    ADD CONSTRAINT workers_source CHECK (source IN ('direct', 'membridge')),
    ADD CONSTRAINT workers_active_leases CHECK (active_leases >= 0),
    DROP COLUMN capacity;
