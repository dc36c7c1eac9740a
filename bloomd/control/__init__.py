"""The Unix socket by which an operator sees and steers the daemon.

`protocol` is the language and touches no socket; `listener` makes and removes the socket file; `peer` tells who is at
the other end; `connection` serves one client and `server` all of them; `methods`, with `work`, `events` and `facts`, is
what bloomd can be asked. `client`, `following`, `until`, `render`, `layout`, `terminal`, `bugreport` and `machine`
belong to `bloomd-ctl` and import nothing but the standard library; `answers` and `codes` are what both sides agree on.
"""
