-- loses: workers' own tokens: such a worker needs an API key, or to be enrolled again
--  FROM worker_tokens
-- loses: enrolment codes that could still be used
--  FROM enrolments WHERE expires_at > bloom_now_ms()
-- loses: which worker has the conversation of a context
--  FROM conversations

DROP FUNCTION bloom_holder;
DROP TABLE worker_tokens, enrolments, conversations;
ALTER TABLE workers DROP COLUMN unreached, DROP COLUMN asked_at;
