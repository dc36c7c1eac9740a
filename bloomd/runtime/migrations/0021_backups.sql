-- Backups that are made by schedule; times in ms.

-- The time of the day at which one is made, and since when it is that. One row.
CREATE TABLE backup_schedule (
    one   boolean PRIMARY KEY DEFAULT true CHECK (one),
    at    varchar NOT NULL,
    since bigint  NOT NULL
);

-- What was tried, on whichever node leads.
CREATE TABLE backups (
    id          varchar PRIMARY KEY,
    node        varchar NOT NULL,
    file        varchar NOT NULL,
    -- The time of the schedule that this is for.
    due_at      bigint  NOT NULL,
    started_at  bigint  NOT NULL,
    ended_at    bigint,
    -- Null until there is a file to rely on.
    bytes       bigint,
    -- Objects that the store did not have as the database describes them.
    missing     integer NOT NULL DEFAULT 0,
    verified_at bigint,
    error       varchar
);
CREATE INDEX backups_started ON backups (started_at);
