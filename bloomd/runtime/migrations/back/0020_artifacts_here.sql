DROP INDEX IF EXISTS runtime_artifacts_here;
