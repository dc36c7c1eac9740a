"""Fixtures of the supervisor's tests."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from actors import Actor, Story


@pytest.fixture
def story() -> Story:
    return []


@pytest.fixture
def actor(story: Story) -> Callable[..., Actor]:
    return lambda name, **traits: Actor(name, story, **traits)


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as captured:
        yield captured
