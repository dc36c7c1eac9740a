"""The two kinds of trouble that are nobody's bug, told apart by type all over the daemon."""


class Unavailable(Exception):
    """A dependency is away; it may come back by itself, so what needs it waits and tries again.

    Raised only at the one boundary per dependency that translates foreign errors. The text is one sentence for an
    operator and never holds a secret.
    """


class Misconfigured(Exception):
    """A dependency answers, but not with these settings (a wrong password, a database that does not exist).

    Trying again does not help; a person has to. The text says what to change.
    """


def one_line(error: BaseException) -> str:
    """The error as one line for a status or a log: its own first line, or its type when it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
