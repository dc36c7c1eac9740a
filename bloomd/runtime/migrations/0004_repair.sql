-- Brings rows that the Node.js runtime left in impossible states back under the rules, and says what it changed. A lost
-- attempt ends here as an expired lease always does: back to the queue, or `dead` when it was the last one.

DO $repair$
DECLARE
    now_ms  bigint := bloom_now_ms();
    changed bigint;
BEGIN
    UPDATE llm_tasks
       SET context_id     = coalesce(context_id, ''),
           agent_slug     = coalesce(agent_slug, ''),
           prompt         = coalesce(prompt, ''),
           desired_format = CASE WHEN desired_format IN ('json', 'text') THEN desired_format ELSE 'text' END,
           context_hints  = CASE WHEN jsonb_typeof(context_hints) = 'array' THEN context_hints ELSE '[]' END,
           policy         = CASE WHEN bloom_is_policy(policy) THEN policy ELSE '{"timeout_sec": 120, "budget": 0}' END,
           created_at     = coalesce(created_at, now_ms),
           updated_at     = coalesce(updated_at, created_at, now_ms),
           attempts       = greatest(coalesce(attempts, 0), 0),
           max_attempts   = CASE WHEN max_attempts BETWEEN 1 AND 10 THEN max_attempts ELSE 3 END
     WHERE context_id IS NULL OR agent_slug IS NULL OR prompt IS NULL OR created_at IS NULL OR updated_at IS NULL
        OR attempts IS NULL OR attempts < 0
        OR max_attempts IS NULL OR max_attempts NOT BETWEEN 1 AND 10
        OR desired_format IS NULL OR desired_format NOT IN ('json', 'text')
        OR jsonb_typeof(context_hints) IS DISTINCT FROM 'array'
        OR NOT bloom_is_policy(policy);
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% tasks had missing or impossible values: defaults filled in', changed; END IF;

    UPDATE llm_tasks
       SET context_hints = (SELECT jsonb_agg(CASE jsonb_typeof(hint) WHEN 'string' THEN hint ELSE to_jsonb(hint::text) END)
                              FROM jsonb_array_elements(context_hints) AS hint)
     WHERE NOT bloom_is_texts(context_hints);
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% tasks had context hints that are not text: written as text', changed; END IF;

    UPDATE llm_tasks
       SET status = 'failed', error_message = 'its status was ' || coalesce(status, 'null'), updated_at = now_ms
     WHERE status IS NULL
        OR status NOT IN ('queued', 'leased', 'running', 'completed', 'failed', 'dead', 'cancelled');
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% tasks with an unknown status: now failed', changed; END IF;

    UPDATE workers
       SET node_id       = coalesce(node_id, id),
           url           = coalesce(url, ''),
           status        = CASE WHEN status IN ('online', 'offline', 'syncing', 'error', 'unknown') THEN status
                                ELSE 'unknown' END,
           capabilities  = CASE WHEN jsonb_typeof(capabilities) = 'object' THEN capabilities
                                ELSE '{"claude_cli": true, "max_concurrency": 1, "labels": []}' END,
           ip_addrs      = CASE WHEN jsonb_typeof(ip_addrs) = 'array' THEN ip_addrs ELSE '[]' END,
           obs_count     = coalesce(obs_count, 0),
           db_sha        = coalesce(db_sha, ''),
           registered_at = coalesce(registered_at, now_ms)
     WHERE node_id IS NULL OR url IS NULL OR obs_count IS NULL OR db_sha IS NULL OR registered_at IS NULL
        OR status IS NULL OR status NOT IN ('online', 'offline', 'syncing', 'error', 'unknown')
        OR jsonb_typeof(capabilities) IS DISTINCT FROM 'object'
        OR jsonb_typeof(ip_addrs) IS DISTINCT FROM 'array';
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% workers had missing or impossible values: defaults filled in', changed; END IF;
    UPDATE workers SET alive_at = last_heartbeat;

    UPDATE leases
       SET started_at  = coalesce(started_at, now_ms),
           expires_at  = coalesce(expires_at, now_ms),
           ttl_seconds = CASE WHEN ttl_seconds > 0 THEN ttl_seconds ELSE 300 END,
           status      = CASE WHEN status IN ('active', 'expired', 'released', 'failed') THEN status ELSE 'expired' END,
           task_id     = coalesce(task_id, ''),
           worker_id   = coalesce(worker_id, '')
     WHERE started_at IS NULL OR expires_at IS NULL OR ttl_seconds IS NULL OR ttl_seconds <= 0
        OR task_id IS NULL OR worker_id IS NULL
        OR status IS NULL OR status NOT IN ('active', 'expired', 'released', 'failed');
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% leases had missing or impossible values: defaults filled in', changed; END IF;

    UPDATE leases
       SET status = 'expired', ended_at = now_ms, reason = 'adopted: its task does not run'
     WHERE status = 'active'
       AND NOT EXISTS (SELECT FROM llm_tasks WHERE id = leases.task_id AND llm_tasks.status IN ('leased', 'running'));
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% active leases of tasks that do not run: expired', changed; END IF;

    UPDATE leases
       SET status = 'expired', ended_at = now_ms, reason = 'adopted: its worker is unknown'
     WHERE status = 'active'
       AND NOT EXISTS (SELECT FROM workers WHERE workers.id = leases.worker_id);
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% active leases of unknown workers: expired', changed; END IF;

    -- Of several active leases the one that the task names is kept, else the newest.
    UPDATE leases
       SET status = 'expired', ended_at = now_ms, reason = 'adopted: another lease of the task is current'
      FROM (SELECT leases.id,
                   row_number() OVER (PARTITION BY task_id
                                      ORDER BY (leases.id = llm_tasks.lease_id) DESC NULLS LAST, started_at DESC, leases.id) AS place
              FROM leases
              JOIN llm_tasks ON llm_tasks.id = leases.task_id
             WHERE leases.status = 'active') AS ranked
     WHERE leases.id = ranked.id AND ranked.place > 1;
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% active leases beside another one of the same task: expired', changed; END IF;

    UPDATE leases
       SET status = 'expired', ended_at = now_ms, reason = 'adopted: its worker held more than it may'
      FROM (SELECT leases.id,
                   row_number() OVER (PARTITION BY worker_id ORDER BY started_at, leases.id) AS place,
                   bloom_capacity(workers.capabilities) AS capacity
              FROM leases
              JOIN workers ON workers.id = leases.worker_id
             WHERE leases.status = 'active') AS ranked
     WHERE leases.id = ranked.id AND ranked.place > ranked.capacity;
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% active leases beyond their worker''s capacity: expired', changed; END IF;

    UPDATE llm_tasks
       SET status        = CASE WHEN attempts < max_attempts THEN 'queued' ELSE 'dead' END,
           error_message = 'its lease was lost before this database was adopted',
           lease_id      = NULL,
           worker_id     = NULL,
           updated_at    = now_ms
     WHERE status IN ('leased', 'running')
       AND NOT EXISTS (SELECT FROM leases WHERE leases.task_id = llm_tasks.id AND leases.status = 'active');
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% leased or running tasks without an active lease: queued again, or dead', changed; END IF;

    UPDATE llm_tasks
       SET lease_id = leases.id, worker_id = leases.worker_id
      FROM leases
     WHERE leases.task_id = llm_tasks.id AND leases.status = 'active'
       AND (llm_tasks.lease_id, llm_tasks.worker_id) IS DISTINCT FROM (leases.id, leases.worker_id);
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% tasks named another lease than their active one: corrected', changed; END IF;

    UPDATE llm_tasks SET lease_id = NULL, worker_id = NULL
     WHERE status = 'queued' AND (lease_id IS NOT NULL OR worker_id IS NOT NULL);
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% queued tasks named a lease: cleared', changed; END IF;

    UPDATE workers
       SET active_leases = held.leases
      FROM (SELECT workers.id, count(leases.id)::integer AS leases
              FROM workers
              LEFT JOIN leases ON leases.worker_id = workers.id AND leases.status = 'active'
             GROUP BY workers.id) AS held
     WHERE held.id = workers.id AND workers.active_leases IS DISTINCT FROM held.leases;
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% workers had a wrong count of leases: corrected', changed; END IF;

    UPDATE runtime_artifacts
       SET type        = coalesce(type, 'LLM_RESULT'),
           created_at  = coalesce(created_at, now_ms),
           finalized   = coalesce(finalized, true),
           task_id     = coalesce(task_id, ''),
           entity_refs = CASE WHEN jsonb_typeof(entity_refs) = 'array' THEN entity_refs ELSE '[]' END,
           tags        = CASE WHEN jsonb_typeof(tags) = 'array' THEN tags ELSE '[]' END
     WHERE type IS NULL OR created_at IS NULL OR finalized IS NULL OR task_id IS NULL
        OR jsonb_typeof(entity_refs) IS DISTINCT FROM 'array' OR jsonb_typeof(tags) IS DISTINCT FROM 'array';
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% artifacts had missing values: defaults filled in', changed; END IF;

    UPDATE runtime_artifacts SET size = octet_length(content), sha256 = encode(sha256(convert_to(content, 'UTF8')), 'hex')
     WHERE content IS NOT NULL AND sha256 IS NULL;

    UPDATE audit_logs
       SET timestamp = coalesce(timestamp, 0), action = coalesce(action, ''), entity_type = coalesce(entity_type, ''),
           entity_id = coalesce(entity_id, ''), actor = coalesce(actor, '')
     WHERE timestamp IS NULL OR action IS NULL OR entity_type IS NULL OR entity_id IS NULL OR actor IS NULL;
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% audit entries had missing values: filled in', changed; END IF;
END
$repair$;
