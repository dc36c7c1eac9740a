"""What is wrong with a node, and what mends it: `bloomd doctor`.

A check has a name that stays, looks at one thing, and says in one sentence how it is; and when that is not well, in one
line what mends it. `checks.py` has the table of all checks. Read it first.

    case.py      what the checks look at, each a value or the reason why there is none (fact.py)
    gather.py    finds it out, once for all checks
    finding.py   what a check answers
    report.py    all answers as text for a person, or as JSON

    files, sockets, room, postgres, peers, front, keys, process, fleet: the checks, by subject

What holds:

- Nothing is changed. The connections to PostgreSQL are read-only by the server's own rule.
- It ends within seconds, whatever hangs: every look has a deadline of its own, and they happen at once.
- One cause has one complaint: what cannot be looked at because of it is skipped, and says why.
- It needs no daemon and no database. What only a running daemon knows, it is asked over its control socket.
- No secret is in any answer.
"""

from bloomd.doctor.checks import run
from bloomd.doctor.finding import Finding

__all__ = ["Finding", "run"]
