-- What several statements must agree on stands here once.

-- The clock by which leases live and die. Tests shift it by replacing this function.
-- STABLE although it moves: a condition on it may then use an index, and a row that was waited for is judged anew.
-- In PL/pgSQL, because a SQL function that cannot be inlined is set up anew by each statement, at twice the price.
CREATE OR REPLACE FUNCTION bloom_now_ms() RETURNS bigint
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    RETURN (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
END
$$;

-- How many leases a worker may hold: `max_concurrency`, and one where it says nothing sensible.
CREATE OR REPLACE FUNCTION bloom_capacity(capabilities jsonb) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN jsonb_typeof(capabilities -> 'max_concurrency') = 'number'
        THEN greatest(0, least(32, trunc((capabilities ->> 'max_concurrency')::numeric)))::integer
        ELSE 1
    END
$$;

-- Whether a worker may take a task with these labels now, its capacity included: the one predicate of all ways to lease.
CREATE OR REPLACE FUNCTION bloom_suits(worker_status varchar, capabilities jsonb, held integer, held_back boolean, labels jsonb)
RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT worker_status = 'online'
       AND NOT held_back
       AND coalesce(capabilities -> 'claude_cli' = 'true'::jsonb, false)
       AND held < bloom_capacity(capabilities)
       AND (labels = '[]'::jsonb OR coalesce(capabilities -> 'labels' @> labels, false))
$$;

-- Whether a task's policy is one that can be worked by. In one CASE, because conditions joined by AND may be evaluated in
-- any order, and the casts fail for what is no number.
CREATE OR REPLACE FUNCTION bloom_is_policy(policy jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN jsonb_typeof(policy -> 'timeout_sec') IS DISTINCT FROM 'number'
          OR jsonb_typeof(policy -> 'budget') IS DISTINCT FROM 'number' THEN false
        ELSE (policy ->> 'timeout_sec')::numeric BETWEEN 1 AND 3600
         AND (policy ->> 'timeout_sec')::numeric = trunc((policy ->> 'timeout_sec')::numeric)
    END
$$;

-- Whether this is a JSON array of nothing but strings.
CREATE OR REPLACE FUNCTION bloom_is_texts(value jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(jsonb_typeof(value) = 'array' AND NOT jsonb_path_exists(value, '$[*] ? (@.type() != "string")'), false)
$$;

-- Milliseconds until the next attempt: doubling with each attempt made, capped, and up to 30 % shorter by chance, so
-- that tasks which failed together do not come back together.
CREATE OR REPLACE FUNCTION bloom_retry_delay_ms(attempts integer, first_ms bigint, cap_ms bigint) RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    SELECT (least(cap_ms, first_ms * 2 ^ least(greatest(attempts - 1, 0), 32)) * (1 - 0.3 * random()))::bigint
$$;
