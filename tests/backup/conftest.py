"""`bloomd` as it is typed, in this process."""

from collections.abc import Callable

import pytest

from bloomd.cli import main


@pytest.fixture
def bloomd(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command; its exit code. `url`: the database of the environment, from then on."""

    def run(*arguments: object, url: str = "") -> int:
        if url:
            monkeypatch.setenv("DATABASE_URL", url)
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return int(ended.value.code or 0)

    return run
