"""Why a request to the rules was refused: one class per kind, the text for the client, whom HTTP gives a status."""


class Refusal(Exception):
    """The rules say no. The text is a sentence for the client."""


class Invalid(Refusal):
    """What is asked for makes no sense, at any time."""


class NotFound(Refusal):
    """There is no such thing."""


class Conflict(Refusal):
    """The thing is not in a state in which this can be done."""


class LeaseLost(Conflict):
    """The lease is not, or no longer, the current one of its task: stop the work."""


class TaskCancelled(LeaseLost):
    """The task was cancelled: stop the work."""


class NoWorker(Refusal):
    """No worker can take the task now; it may go later."""
