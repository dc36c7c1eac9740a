-- The rows themselves are still there to be counted.

DROP TRIGGER llm_tasks_tally_inserted ON llm_tasks;
DROP TRIGGER llm_tasks_tally_moved ON llm_tasks;
DROP TRIGGER llm_tasks_tally_deleted ON llm_tasks;
DROP TRIGGER llm_tasks_tally_truncated ON llm_tasks;
DROP TRIGGER leases_tally_truncated ON leases;
DROP FUNCTION bloom_tally_tasks_inserted, bloom_tally_task_moved, bloom_tally_tasks_deleted, bloom_tally_truncated;
DROP TABLE tallies;
