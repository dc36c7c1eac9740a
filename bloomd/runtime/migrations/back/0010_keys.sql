-- loses: named API keys: only the one in the configuration is left
--  FROM api_keys

DROP TABLE api_keys;
