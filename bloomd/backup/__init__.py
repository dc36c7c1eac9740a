"""Backups: one archive of the database, its objects and the configuration, made while the runtime works; and back.

::

    command        what `bloomd backup` and `bloomd restore` do, and say
    options        what they are told
    making         one snapshot of the database, into an archive
    restoring      an archive into a database                      script     a dump's SQL, over a connection of ours
    verifying      the same into one that is thrown away
    objects        the objects of a snapshot, both ways
    configuration  the files of the configuration, both ways
    archive        the file: how it is written, and believed
    programs       pg_dump and pg_restore                          progress   how far it is

The archive is verified before anything is changed, and the database restored in one transaction.
"""
