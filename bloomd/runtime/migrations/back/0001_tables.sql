-- The tables stay: they are the Node.js runtime's. Of a database that it made, those go that its version did not have,
-- unless there is something in them.

DO $tables$
DECLARE
    ours  text[] := '{llm_tasks,leases,workers,runtime_artifacts,llm_results,audit_logs,runtime_settings,users,
                      managed_projects,project_node_status}';
    added text;
    used  boolean;
BEGIN
    IF to_regclass('bloomd_adopted') IS NULL THEN
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM bloomd_adopted WHERE table_name = ANY (ours)) THEN
        RETURN;
    END IF;
    FOR added IN SELECT unnest(ours) EXCEPT SELECT table_name FROM bloomd_adopted
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %I)', added) INTO used;
        IF used THEN
            RAISE NOTICE 'the table % was not there before bloomd, and is in use now: it stays', added;
        ELSE
            EXECUTE format('DROP TABLE %I', added);
        END IF;
    END LOOP;
END
$tables$;

DROP TABLE IF EXISTS bloomd_adopted;
