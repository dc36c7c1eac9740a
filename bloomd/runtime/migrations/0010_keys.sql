-- API keys by name. The secret is random and long, so a plain hash of it gives nothing away.

CREATE TABLE api_keys (
    name         varchar PRIMARY KEY,
    hash         varchar NOT NULL UNIQUE,  -- sha256 of the secret, hexadecimal
    created_at   bigint  NOT NULL,
    created_by   varchar NOT NULL,
    last_used_at bigint
);
