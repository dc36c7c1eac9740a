-- The columns as another program made them, for the ways back of 0001 and 0005. A database that is new has none.

CREATE TABLE bloomd_adopted AS
SELECT table_name::text, column_name::text, column_default::text, is_nullable::text = 'YES' AS nullable
  FROM information_schema.columns
 WHERE table_schema = current_schema() AND table_name <> 'bloomd_migrations';
