-- The page's sign-ins. A session is a signed cookie: kept here are only the secret that signs them, when none is
-- configured, and the sessions that were ended before their time.

CREATE TABLE session_secret (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),  -- one row
    secret varchar NOT NULL
);

CREATE TABLE ended_sessions (
    id         varchar PRIMARY KEY,
    expires_at bigint  NOT NULL  -- after this it is over anyway, and forgotten here
);
