-- Nobody leads: no bloomd is running.

DROP FUNCTION bloom_leads;
DROP TABLE leaders;
