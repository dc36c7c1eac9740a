-- loses: places of audit entries in the stream of events: who follows it begins anew
--  FROM audit_logs WHERE xact IS NOT NULL

ALTER TABLE audit_logs DROP COLUMN seq, DROP COLUMN xact;  -- with the sequence and the index
