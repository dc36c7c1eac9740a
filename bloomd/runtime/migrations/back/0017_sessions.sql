-- loses: the secret of the page's sign-ins, so that everybody has to sign in again
--  FROM session_secret
-- loses: sign-outs, which a configured secret would let in again after an upgrade
--  FROM ended_sessions WHERE expires_at > bloom_now_ms()

DROP TABLE session_secret, ended_sessions;
