-- The tables as the Node.js runtime made them. On a database that it left behind, this finds them all and does nothing.

CREATE TABLE IF NOT EXISTS llm_tasks (
    id            varchar PRIMARY KEY,
    context_id    varchar,
    agent_slug    varchar,
    prompt        text,
    context_hints jsonb,
    policy        jsonb,
    desired_format varchar,
    status        varchar,
    created_at    bigint,
    updated_at    bigint,
    lease_id      varchar,
    worker_id     varchar,
    attempts      integer,
    max_attempts  integer
);

CREATE TABLE IF NOT EXISTS leases (
    id             varchar PRIMARY KEY,
    task_id        varchar,
    worker_id      varchar,
    started_at     bigint,
    expires_at     bigint,
    ttl_seconds    integer,
    status         varchar,
    last_heartbeat bigint,
    context_id     varchar
);

CREATE TABLE IF NOT EXISTS workers (
    id             varchar PRIMARY KEY,
    node_id        varchar,
    url            varchar,
    status         varchar,
    capabilities   jsonb,
    last_heartbeat bigint,
    ip_addrs       jsonb,
    obs_count      integer,
    db_sha         varchar,
    registered_at  bigint,
    active_leases  integer,
    agent_version  varchar,
    os_info        varchar,
    install_method varchar
);

CREATE TABLE IF NOT EXISTS runtime_artifacts (
    id          varchar PRIMARY KEY,
    task_id     varchar,
    job_id      varchar,
    type        varchar,
    created_at  bigint,
    finalized   boolean,
    url         varchar,
    entity_refs jsonb,
    tags        jsonb,
    content     text
);

CREATE TABLE IF NOT EXISTS llm_results (
    id            varchar PRIMARY KEY,
    task_id       varchar,
    worker_id     varchar,
    artifact_id   varchar,
    status        varchar,
    output        text,
    error_message text,
    metrics       jsonb,
    completed_at  bigint
);

CREATE TABLE IF NOT EXISTS audit_logs (
    id          varchar PRIMARY KEY,
    timestamp   bigint,
    action      varchar,
    entity_type varchar,
    entity_id   varchar,
    actor       varchar,
    detail      varchar
);

CREATE TABLE IF NOT EXISTS runtime_settings (
    key   varchar PRIMARY KEY,
    value text
);

CREATE TABLE IF NOT EXISTS users (
    id       varchar PRIMARY KEY DEFAULT gen_random_uuid(),
    username text NOT NULL UNIQUE,
    password text NOT NULL
);

CREATE TABLE IF NOT EXISTS managed_projects (
    id              varchar PRIMARY KEY DEFAULT gen_random_uuid(),
    name            varchar,
    repo_url        varchar,
    canonical_id    varchar,
    target_path     varchar,
    clone_status    varchar,
    primary_node_id varchar,
    created_at      bigint,
    updated_at      bigint,
    error_message   text
);

CREATE TABLE IF NOT EXISTS project_node_status (
    id            varchar PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id    varchar,
    node_id       varchar,
    clone_status  varchar,
    last_sync_at  bigint,
    error_message text,
    repo_path     varchar
);
