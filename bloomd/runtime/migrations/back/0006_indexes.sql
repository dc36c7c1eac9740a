DROP INDEX llm_tasks_newest, llm_tasks_by_status, llm_tasks_queue;
DROP INDEX leases_newest, leases_by_task, leases_by_worker, leases_by_expiry, leases_by_context, leases_lost;
DROP INDEX workers_newest;
DROP INDEX runtime_artifacts_newest, runtime_artifacts_by_task;
DROP INDEX llm_results_by_task;
DROP INDEX audit_logs_newest, audit_logs_by_entity, audit_logs_by_action;
