"""What both sides of the control socket know: in a module of its own, so that a client imports no more.

That is the codes of its errors, and how long a line may be.
"""

# In bytes, without the LF: little enough to hold one for each of 64 clients. Whoever has more to say has the API.
MAX_LINE = 1 << 20

# JSON-RPC 2.0 names these five.
PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603

# -32000 to -32099 it leaves to the server.
FAILED = -32000
"""The call was understood and permitted, and could not be done; the message says why."""
NOT_PERMITTED = -32001
"""The user of the client may not call this; the message says who may."""
UNAVAILABLE = -32002
"""Something that the call needs is away; the same call may work later."""
BUSY = -32003
"""Too many clients; the connection is closed without a look at what was asked."""
