-- The audit trail as a stream of events, in an order in which nothing appears late.
--
-- `seq` alone is no such order: a number is drawn before its transaction commits, and a reader that has seen 11 would
-- miss 10. Transactions below `pg_snapshot_xmin` have all ended, so a reader that goes by (xact, seq) up to there misses
-- nothing. Entries from before this migration have neither.

CREATE SEQUENCE audit_logs_seq;
ALTER TABLE audit_logs ADD COLUMN seq bigint, ADD COLUMN xact bigint;
ALTER TABLE audit_logs
    ALTER COLUMN seq  SET DEFAULT nextval('audit_logs_seq'),
    ALTER COLUMN xact SET DEFAULT pg_current_xact_id()::text::bigint;
ALTER SEQUENCE audit_logs_seq OWNED BY audit_logs.seq;

CREATE INDEX audit_logs_in_order ON audit_logs (xact, seq) WHERE xact IS NOT NULL;
