-- Artifacts that workers upload while they are at work: content of any kind, and larger than one row should be.

ALTER TABLE runtime_artifacts ADD COLUMN content_type varchar;

-- What is no text, or too long a one to stand in an answer: then `content` is null and this has all of it. Pieces come
-- and go one by one, so that nobody ever holds the whole; each begins where the one before it ends.
CREATE TABLE artifact_pieces (
    artifact_id varchar,
    starts_at   bigint,
    data        bytea NOT NULL,
    PRIMARY KEY (artifact_id, starts_at)
);

-- Uploads that may still come to nothing: under way, or done in an attempt that has not ended. Also what is left of
-- artifacts whose rows are gone. Whoever collects looks at these few, not at all artifacts.
CREATE TABLE uploads (
    artifact_id varchar PRIMARY KEY,
    lease_id    varchar NOT NULL
);
