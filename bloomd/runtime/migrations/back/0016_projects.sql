-- The rows stay as they are. What 0016 has deleted, because it belonged to nothing, does not come back.

DROP INDEX managed_projects_newest, managed_projects_busy, project_node_status_busy;

ALTER TABLE project_node_status
    DROP CONSTRAINT project_node_status_clone_status,
    DROP CONSTRAINT project_node_status_once,
    DROP CONSTRAINT project_node_status_of_project,
    DROP COLUMN operation,
    DROP COLUMN busy_until;

ALTER TABLE managed_projects
    DROP CONSTRAINT managed_projects_clone_status,
    DROP COLUMN operation,
    DROP COLUMN busy_until;

-- What was noted before the adoption. An earlier bloomd noted nothing: then the columns become what 0001 makes them.
DO $restore$
DECLARE
    touched record;
BEGIN
    IF to_regclass('bloomd_adopted') IS NULL THEN
        CREATE TEMPORARY TABLE bloomd_adopted
            (table_name text, column_name text, column_default text, nullable boolean) ON COMMIT DROP;
    END IF;
    FOR touched IN
        SELECT table_name, column_name,
               coalesce('SET DEFAULT ' || column_default, 'DROP DEFAULT')             AS default_clause,
               CASE WHEN nullable = false THEN 'SET NOT NULL' ELSE 'DROP NOT NULL' END AS null_clause
          FROM (VALUES
               ('managed_projects', '{name,repo_url,canonical_id,clone_status,created_at,updated_at}'::text[]),
               ('project_node_status', '{project_id,node_id,clone_status}'::text[])
               ) AS ours (table_name, column_names)
          CROSS JOIN unnest(column_names) AS column_name
          LEFT JOIN bloomd_adopted USING (table_name, column_name)
    LOOP
        EXECUTE format('ALTER TABLE %1$I ALTER COLUMN %2$I %3$s, ALTER COLUMN %2$I %4$s',
                       touched.table_name, touched.column_name, touched.default_clause, touched.null_clause);
    END LOOP;
END
$restore$;
