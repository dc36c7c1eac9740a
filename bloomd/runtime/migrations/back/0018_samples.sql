-- loses: points of the charts of the last day
--  FROM samples

DROP TABLE samples;

-- As 0011 has them.
CREATE OR REPLACE FUNCTION bloom_tally_tasks_inserted() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tallies SELECT 'task:' || status, count(*) FROM arrived GROUP BY status;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION bloom_tally_task_moved() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status <> NEW.status THEN
        INSERT INTO tallies VALUES ('task:' || OLD.status, -1), ('task:' || NEW.status, 1);
    END IF;
    RETURN NULL;
END
$$;

DELETE FROM tallies WHERE name = 'created' OR name LIKE 'ended:%';
