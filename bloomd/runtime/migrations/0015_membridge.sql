-- The control plane that bloomd serves itself (membridge.serve): the agents, the projects and who leads them.

-- `said`: the status that the agent gave itself last. Without `last_seen` others have named it, and nobody has heard it.
CREATE TABLE membridge_agents (
    name          varchar PRIMARY KEY,
    url           varchar NOT NULL,
    said          varchar NOT NULL,
    registered_at bigint  NOT NULL,
    last_seen     bigint,
    capabilities  jsonb,
    ip_addrs      jsonb,
    obs_count     integer,
    db_sha        varchar,
    agent_version varchar
);

CREATE TABLE membridge_projects (
    canonical_id varchar PRIMARY KEY,
    name         varchar NOT NULL UNIQUE,
    source       varchar NOT NULL,  -- manual, or heartbeat: an agent spoke of it first
    created_at   bigint  NOT NULL
);

-- The agents of a project, as they say themselves.
CREATE TABLE membridge_nodes (
    canonical_id  varchar,
    node_id       varchar,
    project_id    varchar,
    obs_count     integer,
    db_sha        varchar,
    ip_addrs      jsonb  NOT NULL,
    registered_at bigint NOT NULL,
    last_seen     bigint NOT NULL,
    PRIMARY KEY (canonical_id, node_id)
);

-- One row for each project that ever had a primary. It outlives the project, so that no epoch comes twice.
CREATE TABLE membridge_leaderships (
    canonical_id    varchar PRIMARY KEY,
    primary_node_id varchar NOT NULL,
    epoch           bigint  NOT NULL,
    issued_at       bigint  NOT NULL,
    expires_at      bigint  NOT NULL
);

-- What agents were asked to push or pull, and what became of it.
CREATE TABLE membridge_jobs (
    id           varchar PRIMARY KEY,
    action       varchar NOT NULL,  -- push, pull
    project      varchar NOT NULL,
    canonical_id varchar NOT NULL,
    agent        varchar NOT NULL,
    status       varchar NOT NULL,  -- running, done, failed
    detail       varchar NOT NULL,
    created_at   bigint  NOT NULL,
    finished_at  bigint
);
CREATE INDEX membridge_jobs_by_time ON membridge_jobs (created_at DESC, id DESC);
