-- The queue in the course of the last day, for the charts of the page: a row every half minute, written by the leader.
--
-- How full it was is as it is counted at that moment. What has happened is told by numbers that only grow, so that the
-- difference of any two rows is what happened between them, however long that was.

CREATE TABLE samples (
    at        bigint PRIMARY KEY,
    queued    bigint NOT NULL,
    leased    bigint NOT NULL,
    running   bigint NOT NULL,
    free      bigint NOT NULL,  -- leases that the workers could take at once
    created   bigint NOT NULL,  -- this and all below since the numbers are kept
    completed bigint NOT NULL,
    failed    bigint NOT NULL,
    dead      bigint NOT NULL,
    cancelled bigint NOT NULL
);

-- Beside the names of 0011 there are two kinds that nothing lowers, neither a deletion nor TRUNCATE: 'created', and
-- 'ended:' with the status that a task came to. One that is requeued and ends again has ended twice.
CREATE OR REPLACE FUNCTION bloom_tally_tasks_inserted() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tallies
    SELECT 'task:' || status, count(*) FROM arrived GROUP BY status
     UNION ALL
    SELECT 'created', count(*) FROM arrived HAVING count(*) > 0;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION bloom_tally_task_moved() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status = NEW.status THEN
        RETURN NULL;
    END IF;
    IF NEW.status IN ('completed', 'failed', 'dead', 'cancelled') THEN
        INSERT INTO tallies VALUES ('task:' || OLD.status, -1), ('task:' || NEW.status, 1), ('ended:' || NEW.status, 1);
    ELSE
        INSERT INTO tallies VALUES ('task:' || OLD.status, -1), ('task:' || NEW.status, 1);
    END IF;
    RETURN NULL;
END
$$;
