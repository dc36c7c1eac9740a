-- What bloomd knows beyond the Node.js runtime. Every column has a default or may be null, so that the older program's
-- INSERTs still work on this schema.

ALTER TABLE llm_tasks
    ADD COLUMN IF NOT EXISTS priority         smallint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS labels           jsonb    NOT NULL DEFAULT '[]',
    ADD COLUMN IF NOT EXISTS pinned_worker_id varchar,
    ADD COLUMN IF NOT EXISTS not_before       bigint,
    ADD COLUMN IF NOT EXISTS retry_at         bigint,
    ADD COLUMN IF NOT EXISTS idempotency_key  varchar,
    ADD COLUMN IF NOT EXISTS error_message    text;

-- `ended_at` and `reason` say when and why a lease stopped being active; `attempt` counts the task's leases from 1.
ALTER TABLE leases
    ADD COLUMN IF NOT EXISTS attempt  integer,
    ADD COLUMN IF NOT EXISTS ended_at bigint,
    ADD COLUMN IF NOT EXISTS reason   varchar;

-- `alive_at`: the last sign of life that this runtime saw itself. `membridge_online_at`: when Membridge last said `online`.
ALTER TABLE workers
    ADD COLUMN IF NOT EXISTS cordoned            boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS draining            boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS source              varchar NOT NULL DEFAULT 'direct',
    ADD COLUMN IF NOT EXISTS alive_at            bigint,
    ADD COLUMN IF NOT EXISTS membridge_online_at bigint;

ALTER TABLE runtime_artifacts
    ADD COLUMN IF NOT EXISTS lease_id varchar,
    ADD COLUMN IF NOT EXISTS name     varchar,
    ADD COLUMN IF NOT EXISTS size     bigint,
    ADD COLUMN IF NOT EXISTS sha256   varchar;

-- `task_state`: how the completion left its task, for whoever says the same completion again.
ALTER TABLE llm_results
    ADD COLUMN IF NOT EXISTS lease_id   varchar,
    ADD COLUMN IF NOT EXISTS task_state jsonb;
