"""What clients, workers and operators may say."""

from typing import Any

import hypothesis.strategies as st

NAMES = ("w1", "w2", "w3")
NOBODY = "nobody"
SECOND = 1000


def mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """Something unusual every now and then: an example that is unusual in all ways at once gets nowhere."""
    return st.sampled_from([*[usual] * 4 * len(others), *others])


names = st.sampled_from(NAMES)
ways = st.sampled_from(["nothing", "body", "path", "path and body"])
proven_names = mostly(None, "its own", *NAMES)
ttls = mostly(None, 5, 30)
some_labels = mostly([], ["gpu"], ["gpu", "eu"])
new_tasks = st.fixed_dictionaries(
    {
        "context_id": st.sampled_from(["", "", "A", "A", "B"]),
        "priority": st.integers(0, 2),
        "labels": some_labels,
        "pinned_worker_id": mostly(None, *NAMES),
        "not_before": mostly(None, -SECOND, 0, 1, 5 * SECOND),
        "max_attempts": st.integers(1, 3),
        "policy": mostly({"timeout_sec": 120, "budget": 0}, {"timeout_sec": 1, "budget": 0}),
        "idempotency_key": mostly(None, "k1", "k2"),
    }
)
"""`not_before` is from now on."""
capabilities = st.fixed_dictionaries(
    {},
    optional={
        "max_concurrency": st.integers(1, 3),
        "labels": st.sampled_from([[], ["gpu"], ["gpu", "eu"]]),
        "sessions": st.booleans(),
        "claude_cli": mostly(True, False),
    },
)
completions = st.fixed_dictionaries(
    {"status": st.sampled_from(["success", "error"])},
    optional={"output": st.just("done"), "error_message": st.just("oh no"), "retryable": st.booleans()},
)
filters = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(
            ["queued", "leased", "running", "completed", "failed", "dead", "cancelled", ["queued", "running"], ["dead"]]
        ),
        "context_id": st.sampled_from(["", "A"]),
        "worker_id": names,
        "before": st.sampled_from([0, 1, -5 * SECOND]),
    },
)
"""`before` is from now on."""
