"""BLOOM's rules and the SQL that enforces them: tasks, leases, workers, artifacts, audit. No HTTP in here.

The life of a task::

                 lease                first heartbeat
      queued ──────────────▶ leased ──────────────────▶ running
        ▲                      │                           │
        │                      ├───────────────────────────┤
        │ expired, or a        │                           │ success ──────────▶ completed
        │ retryable error:     ▼                           │ permanent error ──▶ failed
        └── attempts left ─── lost ── none left ──▶ dead   │ (both only by the current lease)
                                                           │
      requeue (by hand): failed, dead, cancelled, or a queued one that waits ──▶ queued, attempts 0

What decides, and what then holds:

- The database decides, in one statement for each change of state: its conditions are checked on rows that the same
  statement has locked. Python only reads *why* a statement changed nothing, in order to say so.
- The task's row is the lock of its lifecycle: every statement locks the task first, then its lease, then (through the
  trigger that counts leases) the worker. One order, so no deadlocks.
- The lease id is the fencing token. A lease counts while it is the task's current one, `active`, and not past its
  `expires_at` by the database's clock (`bloom_now_ms()`, the only clock in here).
- The audit entry is written by the same statement as the change that it tells of.
- What must hold whatever a program does (one active lease of a task, capacity, one result of an attempt) is a unique
  index or a trigger of the schema (`migrations/0005_guards.sql`).
"""
