-- loses: NOT NULL and defaults of the Node.js runtime's columns, which the bloomd that adopted them did not note
--  FROM (SELECT WHERE to_regclass('bloomd_adopted') IS NULL) AS unnoted

DROP TRIGGER leases_inserted ON leases;
DROP TRIGGER leases_updated ON leases;
DROP TRIGGER leases_deleted ON leases;
DROP TRIGGER workers_inserted ON workers;
DROP TRIGGER workers_counted ON workers;
DROP TRIGGER workers_deleted ON workers;
DROP TRIGGER llm_tasks_deleted ON llm_tasks;
DROP TRIGGER leases_truncated ON leases;
DROP TRIGGER workers_truncated ON workers;
DROP TRIGGER llm_tasks_truncated ON llm_tasks;
DROP FUNCTION bloom_move_leases, bloom_leases_inserted, bloom_leases_updated, bloom_leases_deleted,
              bloom_keep_active_leases, bloom_refuse_while_leased, bloom_refuse_truncate;

DROP INDEX leases_one_active_per_task, llm_results_one_per_lease, runtime_artifacts_one_per_lease_and_name,
           llm_tasks_idempotency;

ALTER TABLE llm_tasks
    DROP CONSTRAINT llm_tasks_policy,
    DROP CONSTRAINT llm_tasks_context_hints,
    DROP CONSTRAINT llm_tasks_labels,
    DROP CONSTRAINT llm_tasks_desired_format,
    DROP CONSTRAINT llm_tasks_status,
    DROP CONSTRAINT llm_tasks_lease;

ALTER TABLE leases DROP CONSTRAINT leases_status;

ALTER TABLE workers
    DROP CONSTRAINT workers_capabilities,
    DROP CONSTRAINT workers_ip_addrs,
    DROP CONSTRAINT workers_status,
    DROP CONSTRAINT workers_source,
    DROP CONSTRAINT workers_active_leases;

ALTER TABLE runtime_artifacts
    DROP CONSTRAINT runtime_artifacts_entity_refs,
    DROP CONSTRAINT runtime_artifacts_tags;

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
               ('llm_tasks', '{context_id,agent_slug,prompt,context_hints,policy,desired_format,status,created_at,
                   updated_at,attempts,max_attempts}'::text[]),
               ('leases', '{task_id,worker_id,started_at,expires_at,ttl_seconds,status}'::text[]),
               ('workers', '{node_id,url,status,capabilities,ip_addrs,obs_count,db_sha,registered_at,
                   active_leases}'::text[]),
               ('runtime_artifacts', '{task_id,type,created_at,finalized,entity_refs,tags}'::text[]),
               ('audit_logs', '{timestamp,action,entity_type,entity_id,actor}'::text[])
               ) AS ours (table_name, column_names)
          CROSS JOIN unnest(column_names) AS column_name
          LEFT JOIN bloomd_adopted USING (table_name, column_name)
    LOOP
        EXECUTE format('ALTER TABLE %1$I ALTER COLUMN %2$I %3$s, ALTER COLUMN %2$I %4$s',
                       touched.table_name, touched.column_name, touched.default_clause, touched.null_clause);
    END LOOP;
END
$restore$;
