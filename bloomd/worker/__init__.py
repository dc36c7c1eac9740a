"""The worker: a machine that runs Claude. It is a client of a bloomd, and shares with the daemon what is below both.

::

    register ─▶ claim, by long poll ─▶ one attempt for each lease ─▶ claim ...
                     ▲     │
       a usage limit │     │ SIGTERM: nothing is claimed any more; what runs may finish within `grace_seconds`,
       pauses it ────┘     │ and is given back after that, or at once by a second signal
                           ▼
                         the end

    an attempt:   the turn of its context ─▶ the program, its prompt on stdin ─▶ upload, when it is long ─▶ completion
                  └──────── heartbeats, every third of the lease's time ──────────────────────────────┘

Who decides: the server says whose a task is, and a heartbeat or a completion is how a worker learns it. As long as the
server is away a lease counts as held: the program goes on, and the completion is tried again. A lease that is lost or
whose task was cancelled stops the program at once, and what it said is thrown away.

What holds:

- A task that could not be worked on, for a reason that is this machine's (its usage limit, its program, its end), is
  given back, and costs no attempt. What the program says of the task itself ends the attempt.
- Nothing of a program outlives its attempt: the whole process group is ended, and who has left it, before the server
  hears of the end. Nor does it outlive the worker, however that ends: a guard sees to it.
- The program gets an environment without a secret of ours, and its prompt where no other user can read it.
- Tasks of one context run one at a time, in one directory, and in the conversation that the last of them left there.
- A worker that was killed leaves notes of what it held; the next one in the same directory gives the tasks back, and
  ends what would still run if the guard was killed, too.

`worker.py` claims and stops, `attempt.py` lives the life of one lease, `api.py` talks to the server. What decides
without doing is pure: `claude.py` (what the program said), `limits.py` (what it refused), `prompt.py`.
"""
