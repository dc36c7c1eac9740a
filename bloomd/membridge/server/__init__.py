"""The control plane that bloomd serves itself (`membridge.serve`), for whoever has no Membridge server.

    app.py     one request: the key, the route, the body, and errors in the words that its clients know
    bodies.py  what clients send, from bytes to checked values
    plane.py   what each route does
    served.py  where it is served, with which key, and whether this daemon's own client talks to it

Its clients are those of any Membridge (contract, section 5): agents that register and send heartbeats, people with
curl, and the client, the sync, the proxy and the probe of this very daemon, which reach it over HTTP like another one.
What it knows is in PostgreSQL (`bloomd.runtime.membridge_agents` and its neighbours), so a restart forgets nothing, and
several nodes that serve it say the same.
"""
