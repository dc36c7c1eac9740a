"""The invariants of contract section 4 as SQL, for whoever has let many clients loose on a database.

Each question asks for rows that break a rule: no row, nothing broken. What changes together is changed by one
statement, its audit entry included, so there are none in any snapshot, also in the middle of a storm. `TABLES` are what
must be so whoever wrote the rows; `TRAIL` is what must be so of a database that nobody else has written to; `AT_REST`
holds when no client is left and the sweeper has had its time.

The audit trail is read in the order of `seq`: the number is drawn while the row that it tells of is locked, so for one
task, or one worker, it is the order in which things happened. By `(xact, seq)`, as followers of the events read, two
changes of one task may come the other way round: a claim's transaction begins when it locks its worker.
"""

from collections.abc import Callable

# By how much a lease may have ended after its time: that was still to come when the statement looked.
LATE_MS = 200

# Whether the steps of a task may be missing in its own trail: a bulk action has one entry for all, with its filter.
BULK = """
bulk AS (
    SELECT action, detail::jsonb -> 'filter' ->> 'agent_slug' AS agent_slug,
           (detail::jsonb ->> 'changed')::bigint AS changed
      FROM audit_logs
     WHERE action IN ('tasks.requeued', 'tasks.cancelled')
), in_bulk AS (
    SELECT llm_tasks.id
      FROM llm_tasks
     WHERE EXISTS (SELECT FROM bulk WHERE coalesce(bulk.agent_slug = llm_tasks.agent_slug, true))
)
"""

# The steps of each task: where it was, what happened, where it went, and of which lease that speaks.
STEPS = f"""
WITH {BULK}, entry AS (
    SELECT seq, entity_id AS task_id, action, detail,
           substring(detail FROM 'lease ([0-9a-f-]{{36}})') AS lease_id,
           CASE action WHEN 'task.created'  THEN 'queued'
                       WHEN 'task.retried'  THEN 'queued'
                       WHEN 'task.released' THEN 'queued'
                       WHEN 'task.requeued' THEN 'queued'
                       WHEN 'lease.expired' THEN substring(detail FROM 'task now (\\w+)$')
                       WHEN 'task.rescued'  THEN substring(detail FROM 'now (\\w+)$')
                       ELSE substr(action, 6) END AS became
      FROM audit_logs
     WHERE entity_type = 'task' AND (starts_with(action, 'task.') OR action = 'lease.expired')
), step AS (
    SELECT *,
           lag(became) OVER each AS was,
           lag(lease_id) OVER each AS held,
           row_number() OVER (PARTITION BY task_id ORDER BY seq DESC) = 1 AS latest,
           task_id IN (SELECT id FROM in_bulk) AS in_bulk
      FROM entry
    WINDOW each AS (PARTITION BY task_id ORDER BY seq)
)
"""

# From where each step may start. What was completed stays so.
LEGAL = """
legal (action, was) AS (
    VALUES ('task.leased', 'queued'),
           ('task.running', 'leased'),
           ('task.completed', 'leased'), ('task.completed', 'running'),
           ('task.failed', 'leased'), ('task.failed', 'running'),
           ('task.dead', 'leased'), ('task.dead', 'running'),
           ('task.retried', 'leased'), ('task.retried', 'running'),
           ('task.released', 'leased'), ('task.released', 'running'),
           ('lease.expired', 'leased'), ('lease.expired', 'running'),
           ('task.cancelled', 'queued'), ('task.cancelled', 'leased'), ('task.cancelled', 'running'),
           ('task.requeued', 'failed'), ('task.requeued', 'dead'), ('task.requeued', 'cancelled'),
           ('task.requeued', 'queued')
)
"""

# The entries that tell of an attempt's end.
ENDS = """
WITH ending AS (
    SELECT substring(detail FROM 'lease ([0-9a-f-]{36})') AS lease_id, action, entity_id AS task_id
      FROM audit_logs
     WHERE action IN ('task.completed', 'task.failed', 'task.dead', 'task.retried', 'task.released', 'lease.expired')
)
"""

# The signs of a worker's status, and what they were before.
WORKER_STEPS = """
WITH step AS (
    SELECT entity_id AS id, action, became,
           lag(became) OVER each AS was,
           lead(seq) OVER each IS NULL AS latest
      FROM (SELECT *, CASE action WHEN 'worker.online'  THEN 'online'
                                  WHEN 'worker.offline' THEN 'offline'
                                  WHEN 'worker.removed' THEN 'removed'
                                  ELSE substring(detail FROM '^status (\\w+)') END AS became
              FROM audit_logs
             WHERE action IN ('worker.registered', 'worker.updated', 'worker.online', 'worker.offline',
                              'worker.removed')) AS entry
    WINDOW each AS (PARTITION BY entity_id ORDER BY seq)
)
"""

TABLES = {
    "1: two active leases of a task": """
        SELECT task_id FROM leases WHERE status = 'active' GROUP BY task_id HAVING count(*) > 1""",
    "1: two active leases of a context, for workers that take it one at a time": """
        SELECT context_id FROM leases WHERE status = 'active' AND serial GROUP BY context_id HAVING count(*) > 1""",
    "2: a worker holds more than it may": """
        SELECT worker_id
          FROM leases
          LEFT JOIN workers ON workers.id = worker_id
         WHERE leases.status = 'active'
         GROUP BY worker_id
        HAVING count(*) > coalesce(max(bloom_capacity(capabilities)), 0)""",
    "2: a worker's count is not that of its leases": """
        SELECT id
          FROM workers
         WHERE active_leases <> (SELECT count(*) FROM leases WHERE worker_id = workers.id AND status = 'active')""",
    "3: a lease spoke after its time": f"""
        SELECT id
          FROM leases
         WHERE outcome IN ('success', 'error', 'released')
           AND ended_at > least(expires_at, deadline_at) + {LATE_MS}""",
    "3: a heartbeat after the end": """
        SELECT id FROM leases WHERE last_heartbeat > ended_at""",
    "4: a completed attempt without exactly one result": """
        SELECT leases.id
          FROM leases
          LEFT JOIN llm_results ON llm_results.lease_id = leases.id
         WHERE leases.outcome IN ('success', 'error')
         GROUP BY leases.id
        HAVING count(llm_results.id) <> 1""",
    "4: a result that its attempt does not know": """
        SELECT llm_results.id
          FROM llm_results
          LEFT JOIN leases ON leases.id = lease_id
         WHERE (leases.outcome, leases.task_id, leases.worker_id, leases.ended_at) IS DISTINCT FROM
               (llm_results.status, llm_results.task_id, llm_results.worker_id, completed_at)""",
    "4: a result without its artifact": """
        SELECT llm_results.id
          FROM llm_results
          LEFT JOIN runtime_artifacts AS artifact
                 ON (artifact.id, artifact.lease_id) = (artifact_id, llm_results.lease_id)
         WHERE artifact.id IS NULL""",
    "4: an artifact that no result names": """
        SELECT id
          FROM runtime_artifacts
         WHERE name = 'result' AND NOT EXISTS (SELECT FROM llm_results WHERE artifact_id = runtime_artifacts.id)""",
    "4: a completed task whose last attempt was no success": """
        SELECT llm_tasks.id
          FROM llm_tasks
          LEFT JOIN llm_results ON llm_results.lease_id = llm_tasks.lease_id AND llm_results.status = 'success'
         WHERE llm_tasks.status = 'completed' AND llm_results.id IS NULL""",
    "5: a task under way without its active lease": """
        SELECT llm_tasks.id
          FROM llm_tasks
          LEFT JOIN leases ON leases.id = lease_id AND leases.status = 'active'
         WHERE llm_tasks.status IN ('leased', 'running')
           AND (leases.task_id, leases.worker_id, leases.attempt) IS DISTINCT FROM
               (llm_tasks.id, llm_tasks.worker_id, llm_tasks.attempts)""",
    "5: an active lease of a task that is elsewhere": """
        SELECT leases.id
          FROM leases
         WHERE status = 'active'
           AND NOT EXISTS (SELECT
                             FROM llm_tasks
                            WHERE lease_id = leases.id AND llm_tasks.status IN ('leased', 'running'))""",
    "5: more attempts than a task may have": """
        SELECT leases.id
          FROM leases
          JOIN llm_tasks ON llm_tasks.id = task_id
         WHERE leases.attempt NOT BETWEEN 1 AND max_attempts""",
    "6: a lease ended before its time": """
        SELECT id
          FROM leases
         WHERE outcome IN ('expired', 'deadline')
           AND ended_at < least(expires_at, deadline_at)
           AND reason <> 'its worker was removed'""",
    "a tally that is not the count": """
        SELECT name, told, counted
          FROM (SELECT name, sum(change) AS told
                  FROM tallies
                 WHERE name <> 'created' AND NOT starts_with(name, 'ended:')
                 GROUP BY name
                HAVING sum(change) <> 0) AS tally
          FULL JOIN (SELECT 'task:' || status AS name, count(*) AS counted FROM llm_tasks GROUP BY status
                     UNION ALL
                     SELECT 'lease', count(*) FROM leases HAVING count(*) > 0) AS truth USING (name)
         WHERE told IS DISTINCT FROM counted""",
}

TRAIL = {
    "4: two successes of a task": """
        SELECT task_id FROM llm_results WHERE status = 'success' GROUP BY task_id HAVING count(*) > 1""",
    "5: a task had to be rescued": """
        SELECT entity_id FROM audit_logs WHERE action = 'task.rescued'""",
    "6: a step of another lease than the current one": STEPS
    + """
        SELECT task_id, action, held, lease_id
          FROM step
         WHERE lease_id IS NOT NULL AND action <> 'task.leased' AND lease_id IS DISTINCT FROM held""",
    "7: a task without its creation": """
        SELECT llm_tasks.id
          FROM llm_tasks
          LEFT JOIN audit_logs ON entity_id = llm_tasks.id AND action = 'task.created'
         GROUP BY llm_tasks.id
        HAVING count(audit_logs.id) <> 1""",
    "7: a creation without its task": """
        SELECT entity_id
          FROM audit_logs
         WHERE action = 'task.created' AND NOT EXISTS (SELECT FROM llm_tasks WHERE id = entity_id)""",
    "7: a step from where it cannot start": f"""
        {STEPS}, {LEGAL}
        SELECT task_id, was, action
          FROM step
         WHERE CASE WHEN action = 'task.created' THEN was IS NOT NULL
                    WHEN (action, was) IN (SELECT * FROM legal) THEN false
                    WHEN in_bulk AND was <> 'completed'
                    THEN NOT EXISTS (SELECT FROM legal
                                      WHERE legal.action = step.action AND legal.was IN ('queued', 'cancelled'))
                    ELSE true END""",
    "7: a cancellation from elsewhere than it says": STEPS
    + """
        SELECT task_id, was, detail
          FROM step
         WHERE action = 'task.cancelled' AND NOT in_bulk AND substring(detail FROM '^it was (\\w+)') <> was""",
    "7: a task that is not where its trail ends": STEPS
    + """
        SELECT task_id, became, status
          FROM step
          JOIN llm_tasks ON llm_tasks.id = task_id
         WHERE latest AND became IS DISTINCT FROM status
           AND NOT (in_bulk AND became <> 'completed' AND status IN ('queued', 'cancelled'))""",
    "7: a lease without its entry": """
        WITH entry AS (
            SELECT entity_id AS task_id, substring(detail FROM 'lease ([0-9a-f-]{36})') AS lease_id,
                   substring(detail FROM 'attempt (\\d+)$')::integer AS attempt
              FROM audit_logs
             WHERE action = 'task.leased'
        )
        SELECT coalesce(leases.id, lease_id)
          FROM leases
          FULL JOIN entry
                 ON (entry.lease_id, entry.task_id, entry.attempt) = (leases.id, leases.task_id, leases.attempt)
         GROUP BY leases.id, lease_id
        HAVING leases.id IS NULL OR count(lease_id) <> 1""",
    "7: an attempt's end without its entry": ENDS
    + """
        SELECT leases.id, outcome, count(action)
          FROM leases
          LEFT JOIN ending
                 ON ending.lease_id = leases.id AND ending.task_id = leases.task_id
                AND ending.action = ANY (CASE outcome WHEN 'success'  THEN '{task.completed}'
                                                      WHEN 'error'    THEN '{task.failed,task.dead,task.retried}'
                                                      WHEN 'released' THEN '{task.released}'
                                                      ELSE                 '{lease.expired}' END::text[])
         WHERE leases.status <> 'active' AND outcome <> 'cancelled'
         GROUP BY leases.id
        HAVING count(action) <> 1""",
    "7: an entry of an end that was none": ENDS
    + """
        SELECT lease_id, action
          FROM ending
         WHERE NOT EXISTS (SELECT
                             FROM leases
                            WHERE id = lease_id AND leases.status <> 'active' AND outcome <> 'cancelled')""",
    "7: more cancelled attempts than cancellations": f"""
        WITH {BULK}
        SELECT 'cancelled' AS outcome
         WHERE (SELECT count(*) FROM leases WHERE outcome = 'cancelled')
               > (SELECT count(*) FROM audit_logs
                   WHERE action = 'task.cancelled' AND NOT starts_with(detail, 'it was queued'))
                 + (SELECT coalesce(sum(changed), 0) FROM bulk WHERE action = 'tasks.cancelled')""",
    "7: a worker that is not where its trail ends": WORKER_STEPS
    + """
        SELECT coalesce(workers.id, step.id), became, status
          FROM (SELECT * FROM step WHERE latest) AS step
          FULL JOIN workers ON workers.id = step.id
         WHERE coalesce(status, 'removed') IS DISTINCT FROM became""",
    "7: a worker that came or went twice": WORKER_STEPS
    + """
        SELECT id, was, action FROM step WHERE action IN ('worker.online', 'worker.offline') AND was = became
         UNION ALL
        SELECT id, was, action
          FROM step
         WHERE (action = 'worker.registered') <> (coalesce(was, 'removed') = 'removed')""",
    "7: a worker held back otherwise than its trail says": """
        SELECT workers.id, cordoned, draining, said.actions
          FROM workers
          LEFT JOIN LATERAL (SELECT max(seq) AS free_since
                               FROM audit_logs
                              WHERE entity_id = workers.id
                                AND action IN ('worker.registered', 'worker.uncordoned')) AS trail ON true
          LEFT JOIN LATERAL (SELECT coalesce(array_agg(action), '{}') AS actions
                               FROM audit_logs
                              WHERE entity_id = workers.id
                                AND action IN ('worker.cordoned', 'worker.draining')
                                AND seq > free_since) AS said ON true
         WHERE cordoned <> ('worker.cordoned' = ANY (said.actions))
            OR draining <> ('worker.draining' = ANY (said.actions))""",
    "7: a queue paused otherwise than its trail says": """
        SELECT paused
          FROM queue_state
         WHERE paused <> coalesce((SELECT action = 'queue.paused'
                                     FROM audit_logs
                                    WHERE action IN ('queue.paused', 'queue.resumed')
                                    ORDER BY seq DESC
                                    LIMIT 1), false)""",
    "an epoch without exactly one election": """
        WITH elected AS (
            SELECT substring(detail FROM '^epoch (\\d+)$')::bigint AS epoch
              FROM audit_logs
             WHERE action = 'leader.elected'
        )
        SELECT epoch
          FROM generate_series(1, (SELECT max(epoch) FROM leaders WHERE role = 'leader')) AS epoch
          FULL JOIN elected USING (epoch)
         GROUP BY epoch
        HAVING count(elected.epoch) <> 1 OR epoch > (SELECT max(epoch) FROM leaders)""",
}

AT_REST = {
    "5: a lease that nobody ends": """
        SELECT id FROM leases WHERE status = 'active' AND least(expires_at, deadline_at) <= bloom_now_ms()""",
    "5: a task whose time has come and that no claim finds": """
        SELECT id
          FROM llm_tasks
         WHERE status = 'queued' AND NOT ready AND coalesce(greatest(not_before, retry_at), 0) <= bloom_now_ms()""",
}


def broken(
    sql: Callable[[str], list[tuple[object, ...]]], *questions: dict[str, str]
) -> dict[str, list[tuple[object, ...]]]:
    """The rules that are broken, each with some of the rows that break it. `sql` runs one statement."""
    asked = [item for each in questions for item in each.items()]
    return {rule: rows[:5] for rule, question in asked if (rows := sql(question))}
