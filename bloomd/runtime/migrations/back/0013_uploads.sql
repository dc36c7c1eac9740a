-- loses: content of artifacts in pieces, unless it is text of at most 16 MiB, which moves into its row
--  FROM runtime_artifacts WHERE content IS NULL AND EXISTS (SELECT FROM artifact_pieces WHERE artifact_id = runtime_artifacts.id)
-- loses: content types of artifacts
--  FROM runtime_artifacts WHERE content_type IS NOT NULL

-- What reads only rows has all of their content in memory, and in its answers, so a row takes no more than this.
DO $move$
DECLARE
    artifact varchar;
    moved    bigint := 0;
BEGIN
    FOR artifact IN
        SELECT id FROM runtime_artifacts JOIN artifact_pieces ON artifact_id = id
         WHERE content IS NULL AND url IS NULL
         GROUP BY id
        HAVING sum(length(data)) <= 16777216
    LOOP
        BEGIN
            UPDATE runtime_artifacts
               SET content = (SELECT convert_from(string_agg(data, '' ORDER BY starts_at), 'UTF8')
                                FROM artifact_pieces WHERE artifact_id = artifact)
             WHERE id = artifact;
            moved := moved + 1;
        EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
            NULL;  -- it is no text
        END;
    END LOOP;
    IF moved > 0 THEN RAISE NOTICE '% artifacts were texts in pieces: moved into their rows', moved; END IF;
END
$move$;

DROP TABLE artifact_pieces, uploads;
ALTER TABLE runtime_artifacts DROP COLUMN content_type;
