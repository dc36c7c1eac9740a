-- Content in an object store: `url` says where it is, and neither the row nor the pieces have it any more.

-- Whether the output is the content of the artifact, and stands only there.
ALTER TABLE llm_results ADD COLUMN output_shared boolean NOT NULL DEFAULT false;

-- Objects that nothing refers to any more: they are still to be removed. One row for each, since when (ms).
CREATE TABLE objects_left (
    url   varchar PRIMARY KEY,
    since bigint NOT NULL
);
