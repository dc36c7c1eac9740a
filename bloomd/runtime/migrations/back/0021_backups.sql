-- loses: entries about backups that were made by schedule; the files stay
--  FROM backups
-- loses: since when backups are made by schedule
--  FROM backup_schedule

DROP TABLE backups;
DROP TABLE backup_schedule;
