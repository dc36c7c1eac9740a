"""Membridge, the control plane whose agents become workers here, and the health of the workers themselves.

    link.py      which server is configured at the moment, and the client for it
    client.py    the calls: retries, the admin key, what each answer means, how the calls went
    agents.py    what `/agents` answers, in either generation, decoded without trusting it
    sync.py      the service that mirrors the agents every few seconds
    polls.py     the service that asks every worker with a URL how it is
    networks.py  which addresses a worker's URL may lead to

    calls.py         one call to a worker's agent, with the key that it wants
    dispatch.py      the service that pushes tasks to agents
    execution.py     what an agent is told to do, and what its answer means
    autodispatch.py  pushes what is queued without being asked to
    errands.py       what an operator has an agent do: tell how it is, update, restart, uninstall
    projects.py      brings managed projects to the nodes, and their memory to Membridge

A peer here may be slow, hang, lie or be somebody else altogether. So every exchange (`bloomd.exchange`) has a deadline
for all of it, a limit for its answer, and follows no redirect; what is in an answer counts field by field; and a call
that fails changes nothing but what is said of it.
"""

# Where a control plane is looked for when nobody says another place.
USUAL_PORT = 8000
