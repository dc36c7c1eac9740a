-- Managed projects: one row for each project and node, none without its project, and no state that nobody would end.

-- Who clones or propagates names its `operation`, and says again and again that it is still at it, by moving
-- `busy_until` on. Once that time is over, nobody is.
ALTER TABLE managed_projects    ADD COLUMN operation varchar, ADD COLUMN busy_until bigint;
ALTER TABLE project_node_status ADD COLUMN operation varchar, ADD COLUMN busy_until bigint;

DO $repair$
DECLARE
    now_ms  bigint := bloom_now_ms();
    changed bigint;
BEGIN
    UPDATE managed_projects
       SET name         = coalesce(name, ''),
           repo_url     = coalesce(repo_url, ''),
           canonical_id = coalesce(canonical_id, left(encode(sha256(convert_to(coalesce(name, ''), 'UTF8')), 'hex'), 16)),
           clone_status = CASE WHEN clone_status IN ('pending', 'cloning', 'cloned', 'failed', 'propagating', 'synced')
                               THEN clone_status ELSE 'pending' END,
           created_at   = coalesce(created_at, updated_at, now_ms),
           updated_at   = coalesce(updated_at, created_at, now_ms)
     WHERE name IS NULL OR repo_url IS NULL OR canonical_id IS NULL OR created_at IS NULL OR updated_at IS NULL
        OR clone_status IS NULL
        OR clone_status NOT IN ('pending', 'cloning', 'cloned', 'failed', 'propagating', 'synced');
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% projects had missing or impossible values: defaults filled in', changed; END IF;

    UPDATE managed_projects
       SET clone_status = 'failed', error_message = 'it was under way when this database was adopted', updated_at = now_ms
     WHERE clone_status IN ('cloning', 'propagating');
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% projects were being cloned or propagated: now failed', changed; END IF;

    DELETE FROM project_node_status
     WHERE node_id IS NULL OR project_id IS NULL
        OR NOT EXISTS (SELECT FROM managed_projects WHERE managed_projects.id = project_id);
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% states of nodes belonged to no project or no node: deleted', changed; END IF;

    DELETE FROM project_node_status
     USING (SELECT id, row_number() OVER (PARTITION BY project_id, node_id
                                          ORDER BY last_sync_at DESC NULLS LAST, id DESC) AS place
              FROM project_node_status) AS ranked
     WHERE project_node_status.id = ranked.id AND ranked.place > 1;
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% states beside a later one of the same project and node: deleted', changed; END IF;

    UPDATE project_node_status
       SET clone_status  = CASE WHEN clone_status IN ('cloning', 'propagating') THEN 'failed' ELSE 'pending' END,
           error_message = CASE WHEN clone_status IN ('cloning', 'propagating')
                                THEN 'it was under way when this database was adopted' ELSE error_message END
     WHERE clone_status IS NULL OR clone_status NOT IN ('pending', 'cloned', 'failed', 'synced');
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN RAISE NOTICE '% states of nodes were unknown or under way: now pending or failed', changed; END IF;
END
$repair$;

ALTER TABLE managed_projects
    ALTER COLUMN name         SET NOT NULL,
    ALTER COLUMN repo_url     SET NOT NULL,
    ALTER COLUMN canonical_id SET NOT NULL,
    ALTER COLUMN clone_status SET DEFAULT 'pending',
    ALTER COLUMN clone_status SET NOT NULL,
    ALTER COLUMN created_at   SET DEFAULT bloom_now_ms(),
    ALTER COLUMN created_at   SET NOT NULL,
    ALTER COLUMN updated_at   SET DEFAULT bloom_now_ms(),
    ALTER COLUMN updated_at   SET NOT NULL,
    ADD CONSTRAINT managed_projects_clone_status
        CHECK (clone_status IN ('pending', 'cloning', 'cloned', 'failed', 'propagating', 'synced'));

ALTER TABLE project_node_status
    ALTER COLUMN project_id   SET NOT NULL,
    ALTER COLUMN node_id      SET NOT NULL,
    ALTER COLUMN clone_status SET DEFAULT 'pending',
    ALTER COLUMN clone_status SET NOT NULL,
    ADD CONSTRAINT project_node_status_clone_status
        CHECK (clone_status IN ('pending', 'cloning', 'cloned', 'failed', 'propagating', 'synced')),
    ADD CONSTRAINT project_node_status_once UNIQUE (project_id, node_id),
    ADD CONSTRAINT project_node_status_of_project
        FOREIGN KEY (project_id) REFERENCES managed_projects ON DELETE CASCADE;

CREATE INDEX managed_projects_newest  ON managed_projects (created_at DESC, id DESC);
CREATE INDEX managed_projects_busy    ON managed_projects (busy_until) WHERE busy_until IS NOT NULL;
CREATE INDEX project_node_status_busy ON project_node_status (busy_until) WHERE busy_until IS NOT NULL;
