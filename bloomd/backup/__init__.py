"""Backups: one archive of all that the database has, made while the runtime works, and what brings it back.

::

    command    what `bloomd backup` and `bloomd restore` do, and say
    making     one snapshot of the database, into an archive        restoring   an archive into a database
    archive    the file: how it is written, and believed            script      a dump's SQL, over a connection of ours
    programs   pg_dump and pg_restore                               progress    how far it is
    options    what they are told

The archive is verified before anything is changed, and restored in one transaction.
"""
