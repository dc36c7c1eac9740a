"""Whether another machine has our time."""

from bloomd.doctor.finding import Found, error, ok, warning

# HTTP tells whole seconds; NTP keeps clocks within milliseconds.
APART_SECONDS = 5.0
# An S3 server refuses a signature that is a quarter of an hour old, and a certificate may not count yet.
FAR_APART_SECONDS = 600.0

FIX = "have both machines keep their time by NTP: chronyc tracking, on Alpine rc-service chronyd status"


def compared(who: str, theirs: float, asked: float, answered: float) -> Found:
    """Their time, in epoch seconds, told at some moment between `asked` and `answered` by our clock."""
    apart = theirs - min(max(theirs, asked), answered)
    if abs(apart) < APART_SECONDS:
        return ok(f"{who} has our time")
    text = f"the clock of {who} is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} ours"
    return error(text, FIX) if abs(apart) >= FAR_APART_SECONDS else warning(text, FIX)
