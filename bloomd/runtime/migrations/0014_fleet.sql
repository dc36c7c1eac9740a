-- The fleet: workers with tokens of their own, agents that tasks are pushed to, and who holds which conversation.

-- `unreached`: pushes in a row that could not even be begun. `asked_at`: when it last asked for a task, or waited for one.
ALTER TABLE workers
    ADD COLUMN unreached integer NOT NULL DEFAULT 0,
    ADD COLUMN asked_at  bigint;

-- A worker's own token. It may be made before the worker has registered, and outlives its removal.
CREATE TABLE worker_tokens (
    id           varchar PRIMARY KEY,
    worker_id    varchar NOT NULL,
    hash         varchar NOT NULL UNIQUE,  -- sha256 of the secret, hexadecimal
    created_at   bigint  NOT NULL,
    created_by   varchar NOT NULL,
    last_used_at bigint
);
CREATE INDEX worker_tokens_of_worker ON worker_tokens (worker_id, created_at DESC, id DESC);

-- One-time codes: whoever has one gets a token for this worker, once.
CREATE TABLE enrolments (
    hash       varchar PRIMARY KEY,
    worker_id  varchar NOT NULL,
    created_at bigint  NOT NULL,
    created_by varchar NOT NULL,
    expires_at bigint  NOT NULL
);

-- Which worker has the conversation of a context: the one with `capabilities.sessions` that completed a task of it last.
CREATE TABLE conversations (
    context   varchar PRIMARY KEY,  -- md5 of the context_id, which may be longer than an index entry
    worker_id varchar NOT NULL,
    at        bigint  NOT NULL
);

-- The worker that has the conversation of a task's context and will take the task: now, or as soon as it has room. One
-- that has room and does not ask for tasks, for example because it has paused itself, will not.
CREATE FUNCTION bloom_holder(context_id varchar, pinned_worker_id varchar, labels jsonb) RETURNS varchar
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    IF context_id = '' THEN
        RETURN NULL;
    END IF;
    RETURN (
        SELECT holder.id
          FROM conversations
          JOIN workers AS holder ON holder.id = conversations.worker_id
         WHERE conversations.context = md5(bloom_holder.context_id)
           AND holder.capabilities -> 'sessions' = 'true'::jsonb
           AND (holder.active_leases >= holder.capacity OR holder.asked_at > bloom_now_ms() - 60000)
           AND coalesce(bloom_misfit(holder.id, holder.status, holder.capabilities, holder.active_leases,
                                     holder.capacity, holder.cordoned, holder.draining,
                                     bloom_holder.pinned_worker_id, bloom_holder.labels), 'full') = 'full');
END
$$;
