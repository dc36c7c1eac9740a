-- Who of all nodes sweeps, syncs and prunes. The epoch rises with each change of hands, and what a leader does names it.

CREATE TABLE leaders (
    role       varchar PRIMARY KEY,
    holder     varchar NOT NULL,  -- a process: one life of a daemon
    node       varchar NOT NULL,  -- its name, for people
    epoch      bigint  NOT NULL,
    since      bigint  NOT NULL,
    expires_at bigint  NOT NULL
);

-- Whether a leader of this epoch still is one: the condition of every statement that only the leader runs.
CREATE FUNCTION bloom_leads(of_epoch bigint) RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    RETURN EXISTS (SELECT FROM leaders WHERE role = 'leader' AND epoch = of_epoch AND expires_at > bloom_now_ms());
END
$$;
