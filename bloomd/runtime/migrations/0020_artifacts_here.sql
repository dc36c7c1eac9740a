-- transaction: none
-- What the database itself holds, by size: what is too large to stay is found without reading the rest.

-- Of one that was interrupted there is something left, which is no index.
DO $$ BEGIN IF to_regclass('runtime_artifacts_here') IS NOT NULL THEN DROP INDEX runtime_artifacts_here; END IF; END $$;

CREATE INDEX CONCURRENTLY runtime_artifacts_here ON runtime_artifacts (size, id) WHERE url IS NULL AND size IS NOT NULL;
