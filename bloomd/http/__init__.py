"""The front door: HTTP on hypercorn's trio worker.

`server.py` has the sockets, `connections.py` what happens on one of them, around hypercorn's protocol. A request then
passes four rooms, each of which may answer it at once, before a route sees it::

    hypercorn ─▶ observe.py    its id, its log line, its time; HEAD; whatever was not foreseen becomes a plain 500
              ─▶ access.py     who is asking: client address, Host and Origin, key, limits; open is only what is listed
              ─▶ bodies.py     how much may be sent, and how slowly
              ─▶ app.py        Litestar: routes/ (one file a resource), errors as problem+json (problems.py)

The routes are thin: they read the request, call one function of `bloomd.runtime`, and name the status.
"""
