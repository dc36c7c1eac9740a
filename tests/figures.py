"""A scrape of /metrics as Prometheus reads it: by the parsers of its own library.

before = Figures(http.get("/metrics").text)
...
grown = Figures(http.get("/metrics").text).since(before)
assert grown("bloomd_claims_total") == 1
"""

from collections.abc import Callable

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

__all__ = ["Figures", "classic", "openmetrics"]


class Figures:
    """One scrape."""

    def __init__(self, text: str, parse=classic) -> None:
        self.families = {family.name: family for family in parse(text)}
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self._values[name, frozenset(labels.items())]

    def labels(self, name: str) -> list[dict[str, str]]:
        return [dict(labels) for sample, labels in self._values if sample == name]

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self._values}

    def since(self, before: "Figures") -> Callable[..., float]:
        """By how much a series has grown; one that was not there before, from 0."""

        def growth(name: str, **labels: str) -> float:
            key = name, frozenset(labels.items())
            return self._values.get(key, 0.0) - before._values.get(key, 0.0)

        return growth
