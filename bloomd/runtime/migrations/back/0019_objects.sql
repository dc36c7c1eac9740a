-- loses: contents that are in the object store, for a bloomd that does not read them there (the Node.js runtime does)
--  FROM runtime_artifacts WHERE url LIKE 'minio://%' AND size IS NOT NULL
-- loses: outputs of results, where the artifact with the same content is in the object store
--  FROM llm_results JOIN runtime_artifacts ON runtime_artifacts.id = artifact_id WHERE output_shared AND url IS NOT NULL
-- loses: names of objects that are still to be removed from the object store
--  FROM objects_left

UPDATE llm_results
   SET output = content
  FROM runtime_artifacts
 WHERE output_shared AND runtime_artifacts.id = artifact_id;

DROP TABLE objects_left;
ALTER TABLE llm_results DROP COLUMN output_shared;
