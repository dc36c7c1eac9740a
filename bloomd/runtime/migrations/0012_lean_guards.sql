-- The guards of 0005, at a third of their price. What they keep is the same.
--
-- PostgreSQL evaluates every CHECK of a table for every UPDATE, whatever it changes, and sets it up anew for each
-- statement: a fifth of the time of a task's whole life went into looking at columns that never change. A trigger
-- looks when its column is written.

CREATE FUNCTION bloom_refuse(what text, constraint_name text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% violates "%"', what, constraint_name USING ERRCODE = 'check_violation', CONSTRAINT = constraint_name;
END
$$;

ALTER TABLE llm_tasks
    DROP CONSTRAINT llm_tasks_policy,
    DROP CONSTRAINT llm_tasks_context_hints,
    DROP CONSTRAINT llm_tasks_labels,
    DROP CONSTRAINT llm_tasks_desired_format,
    DROP CONSTRAINT llm_tasks_status,
    DROP CONSTRAINT llm_tasks_lease;

CREATE FUNCTION bloom_judge_task() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT bloom_is_policy(NEW.policy) THEN
        PERFORM bloom_refuse('the policy of task ' || NEW.id, 'llm_tasks_policy');
    ELSIF NOT bloom_is_texts(NEW.context_hints) THEN
        PERFORM bloom_refuse('the context_hints of task ' || NEW.id, 'llm_tasks_context_hints');
    ELSIF NOT bloom_is_texts(NEW.labels) THEN
        PERFORM bloom_refuse('the labels of task ' || NEW.id, 'llm_tasks_labels');
    ELSIF NEW.desired_format NOT IN ('json', 'text') THEN
        PERFORM bloom_refuse('the desired_format of task ' || NEW.id, 'llm_tasks_desired_format');
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER llm_tasks_judged BEFORE INSERT OR UPDATE OF policy, context_hints, labels, desired_format ON llm_tasks
    FOR EACH ROW EXECUTE FUNCTION bloom_judge_task();

CREATE FUNCTION bloom_judge_task_state() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status IN ('leased', 'running') AND NEW.lease_id IS NULL OR NEW.status = 'queued' AND NEW.lease_id IS NOT NULL THEN
        PERFORM bloom_refuse('the lease_id of ' || NEW.status || ' task ' || NEW.id, 'llm_tasks_lease');
    ELSIF NEW.status NOT IN ('queued', 'leased', 'running', 'completed', 'failed', 'dead', 'cancelled') THEN
        PERFORM bloom_refuse('the status ' || NEW.status || ' of task ' || NEW.id, 'llm_tasks_status');
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER llm_tasks_state_judged BEFORE INSERT OR UPDATE OF status, lease_id ON llm_tasks
    FOR EACH ROW EXECUTE FUNCTION bloom_judge_task_state();

ALTER TABLE leases
    DROP CONSTRAINT leases_status,
    DROP CONSTRAINT leases_outcome_check;

CREATE FUNCTION bloom_judge_lease() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status NOT IN ('active', 'expired', 'released', 'failed') THEN
        PERFORM bloom_refuse('the status ' || NEW.status || ' of lease ' || NEW.id, 'leases_status');
    ELSIF NEW.outcome NOT IN ('success', 'error', 'expired', 'deadline', 'released', 'cancelled') THEN
        PERFORM bloom_refuse('the outcome ' || NEW.outcome || ' of lease ' || NEW.id, 'leases_outcome');
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER leases_judged BEFORE INSERT OR UPDATE OF status, outcome ON leases
    FOR EACH ROW EXECUTE FUNCTION bloom_judge_lease();

-- `capacity` is `max_concurrency` as a number that can be compared without looking into the capabilities.
ALTER TABLE workers
    DROP CONSTRAINT workers_capabilities,
    DROP CONSTRAINT workers_ip_addrs,
    DROP CONSTRAINT workers_status,
    DROP CONSTRAINT workers_source,
    DROP CONSTRAINT workers_active_leases,
    ADD COLUMN capacity integer NOT NULL DEFAULT 1;

CREATE FUNCTION bloom_judge_worker() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF jsonb_typeof(NEW.capabilities) <> 'object' THEN
        PERFORM bloom_refuse('the capabilities of worker ' || NEW.id, 'workers_capabilities');
    ELSIF jsonb_typeof(NEW.ip_addrs) <> 'array' THEN
        PERFORM bloom_refuse('the ip_addrs of worker ' || NEW.id, 'workers_ip_addrs');
    ELSIF NEW.source NOT IN ('direct', 'membridge') THEN
        PERFORM bloom_refuse('the source of worker ' || NEW.id, 'workers_source');
    END IF;
    NEW.capacity := bloom_capacity(NEW.capabilities);
    RETURN NEW;
END
$$;
CREATE TRIGGER workers_judged BEFORE INSERT OR UPDATE OF capabilities, capacity, ip_addrs, source ON workers
    FOR EACH ROW EXECUTE FUNCTION bloom_judge_worker();
UPDATE workers SET capacity = capacity;

CREATE FUNCTION bloom_judge_worker_status() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status NOT IN ('online', 'offline', 'syncing', 'error', 'unknown') THEN
        PERFORM bloom_refuse('the status ' || NEW.status || ' of worker ' || NEW.id, 'workers_status');
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER workers_status_judged BEFORE INSERT OR UPDATE OF status ON workers
    FOR EACH ROW EXECUTE FUNCTION bloom_judge_worker_status();

-- Invariant 2 again: the count of a worker's active leases is kept here and nowhere else, and never raised past its
-- capacity. Leases are made many at once, which is one change for each worker; they end one by one, and a heartbeat,
-- which writes neither column, does not even ask. A statement that ends leases of several workers locks these first,
-- in order of id.
DROP TRIGGER leases_inserted ON leases;
DROP TRIGGER leases_updated ON leases;
DROP TRIGGER leases_deleted ON leases;
DROP FUNCTION bloom_leases_inserted, bloom_leases_updated, bloom_leases_deleted, bloom_move_leases;

CREATE FUNCTION bloom_take_capacity(of_worker varchar, number bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    worker record;
BEGIN
    UPDATE workers SET active_leases = active_leases + number WHERE id = of_worker AND active_leases + number <= capacity;
    IF FOUND THEN
        RETURN;
    END IF;
    SELECT * INTO worker FROM workers WHERE id = of_worker;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'an active lease needs a worker that exists, and there is no %', of_worker
              USING ERRCODE = 'foreign_key_violation';
    END IF;
    RAISE EXCEPTION 'worker % has no free capacity: it holds % of % leases', of_worker, worker.active_leases, worker.capacity
          USING ERRCODE = 'check_violation', CONSTRAINT = 'workers_capacity';
END
$$;

CREATE FUNCTION bloom_leases_inserted() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    made record;
BEGIN
    FOR made IN SELECT worker_id, count(*) AS active FROM arrived WHERE status = 'active' GROUP BY worker_id ORDER BY worker_id
    LOOP
        PERFORM bloom_take_capacity(made.worker_id, made.active);
    END LOOP;
    INSERT INTO tallies SELECT 'lease', count(*) FROM arrived HAVING count(*) > 0;
    RETURN NULL;
END
$$;
CREATE TRIGGER leases_inserted AFTER INSERT ON leases
    REFERENCING NEW TABLE AS arrived FOR EACH STATEMENT EXECUTE FUNCTION bloom_leases_inserted();

CREATE FUNCTION bloom_lease_changed() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status = 'active' AND (NEW.status <> 'active' OR NEW.worker_id <> OLD.worker_id) THEN
        UPDATE workers SET active_leases = active_leases - 1 WHERE id = OLD.worker_id AND active_leases > 0;
    END IF;
    IF NEW.status = 'active' AND (OLD.status <> 'active' OR NEW.worker_id <> OLD.worker_id) THEN
        PERFORM bloom_take_capacity(NEW.worker_id, 1);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER leases_changed AFTER UPDATE OF status, worker_id ON leases
    FOR EACH ROW EXECUTE FUNCTION bloom_lease_changed();

CREATE FUNCTION bloom_leases_deleted() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    gone record;
BEGIN
    FOR gone IN SELECT worker_id, count(*) AS active FROM departed WHERE status = 'active' GROUP BY worker_id ORDER BY worker_id
    LOOP
        UPDATE workers SET active_leases = greatest(0, active_leases - gone.active) WHERE id = gone.worker_id;
    END LOOP;
    INSERT INTO tallies SELECT 'lease', -count(*) FROM departed HAVING count(*) > 0;
    RETURN NULL;
END
$$;
CREATE TRIGGER leases_deleted AFTER DELETE ON leases
    REFERENCING OLD TABLE AS departed FOR EACH STATEMENT EXECUTE FUNCTION bloom_leases_deleted();

-- What another program writes into the count is not taken over; the triggers above write it one level deeper.
CREATE OR REPLACE FUNCTION bloom_keep_active_leases() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        NEW.active_leases := (SELECT count(*) FROM leases WHERE worker_id = NEW.id AND status = 'active');
    ELSIF pg_trigger_depth() = 1 THEN
        NEW.active_leases := OLD.active_leases;
    END IF;
    RETURN NEW;
END
$$;
DROP TRIGGER workers_counted ON workers;
CREATE TRIGGER workers_counted BEFORE UPDATE OF active_leases ON workers
    FOR EACH ROW EXECUTE FUNCTION bloom_keep_active_leases();

-- Why a worker cannot take a task with these labels now, its capacity included; null when it can. The one predicate of
-- all ways to lease, and of the answer to why a task waits.
-- Instead of `bloom_suits` (0002).
DROP FUNCTION bloom_suits;
CREATE FUNCTION bloom_misfit(
    worker_id varchar, worker_status varchar, capabilities jsonb, held integer, capacity integer, cordoned boolean,
    draining boolean, pinned_worker_id varchar, labels jsonb
) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN pinned_worker_id <> worker_id                                                      THEN 'not-pinned'
        WHEN worker_status <> 'online'                                                          THEN 'offline'
        WHEN capabilities -> 'claude_cli' IS DISTINCT FROM 'true'::jsonb                        THEN 'no-claude'
        WHEN labels <> '[]'::jsonb AND NOT coalesce(capabilities -> 'labels' @> labels, false)  THEN 'no-label'
        WHEN draining                                                                           THEN 'draining'
        WHEN cordoned                                                                           THEN 'cordoned'
        WHEN held >= capacity                                                                   THEN 'full'
    END
$$;
