-- How many tasks there are in each status, and how many leases there have been, without counting them.
--
-- A row for each change instead of a number that is changed: no two transactions ever wait for each other here. The sum
-- of a name's rows is its count. The leader adds them up from time to time, so that few remain.

CREATE TABLE tallies (
    name   varchar NOT NULL,  -- 'task:' and a status, or 'lease'
    change bigint  NOT NULL
) WITH (autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_scale_factor = 0);

CREATE FUNCTION bloom_tally_tasks_inserted() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tallies SELECT 'task:' || status, count(*) FROM arrived GROUP BY status;
    RETURN NULL;
END
$$;

CREATE FUNCTION bloom_tally_task_moved() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status <> NEW.status THEN
        INSERT INTO tallies VALUES ('task:' || OLD.status, -1), ('task:' || NEW.status, 1);
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION bloom_tally_tasks_deleted() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tallies SELECT 'task:' || status, -count(*) FROM departed GROUP BY status;
    RETURN NULL;
END
$$;

-- TRUNCATE fires none of the others.
CREATE FUNCTION bloom_tally_truncated() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM tallies WHERE CASE TG_TABLE_NAME WHEN 'leases' THEN name = 'lease' ELSE name LIKE 'task:%' END;
    RETURN NULL;
END
$$;

-- (Leases are tallied where they are counted for their workers: 0012.) A trigger takes a lock that writers wait for, so from here on nothing is missed.
CREATE TRIGGER llm_tasks_tally_inserted AFTER INSERT ON llm_tasks
    REFERENCING NEW TABLE AS arrived FOR EACH STATEMENT EXECUTE FUNCTION bloom_tally_tasks_inserted();
CREATE TRIGGER llm_tasks_tally_moved AFTER UPDATE OF status ON llm_tasks
    FOR EACH ROW EXECUTE FUNCTION bloom_tally_task_moved();
CREATE TRIGGER llm_tasks_tally_deleted AFTER DELETE ON llm_tasks
    REFERENCING OLD TABLE AS departed FOR EACH STATEMENT EXECUTE FUNCTION bloom_tally_tasks_deleted();
CREATE TRIGGER llm_tasks_tally_truncated AFTER TRUNCATE ON llm_tasks
    FOR EACH STATEMENT EXECUTE FUNCTION bloom_tally_truncated();
CREATE TRIGGER leases_tally_truncated AFTER TRUNCATE ON leases
    FOR EACH STATEMENT EXECUTE FUNCTION bloom_tally_truncated();

INSERT INTO tallies SELECT 'task:' || status, count(*) FROM llm_tasks GROUP BY status;
INSERT INTO tallies SELECT 'lease', count(*) FROM leases HAVING count(*) > 0;
