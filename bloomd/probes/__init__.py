"""Probes: whether PostgreSQL, MinIO and Membridge are there, looked at from outside again and again.

`probe.py` is the loop and the state, the same for all; each dependency has one small file that says what a check is.
A check uses nothing of what the daemon works with (a connection of its own, and an HTTP library of its own where there
is one), so that it says how the dependency is, and not how our pool is.
"""

from bloomd.probes.probe import Check, Probe, ProbeStatus, Round, State

__all__ = ["Check", "Probe", "ProbeStatus", "Round", "State"]
