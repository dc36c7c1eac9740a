"""The documentation that is made from the sources: what `make docs` writes, and tests hold to be up to date.

The settings' model makes bloomd.yaml.example and the keys of bloomd.yaml(5); the parsers of the command lines, which
make `--help`, make the lists of commands and options in the other manual pages, and the completions of three shells;
and the doctor's table makes the list of what it looks at.
"""

from collections.abc import Iterator
from pathlib import Path

from bloomd import cli, ctl
from bloomd.doctor.checks import CHECKS
from bloomd.settings import document
from docs import completions, manual
from docs.commands import program

ROOT = Path(__file__).parents[1]


def made() -> Iterator[tuple[str, str]]:
    """Each file that is made, or has a part that is, with the text that it must have."""
    yield "bloomd.yaml.example", document.example()

    bloomd, bloomd_ctl = program(cli._parser()), program(ctl._parser())
    worker = bloomd.commands["worker"]
    regions = {
        "bloomd.yaml.5": {"Keys": document.man()},
        "bloomd-worker.8": {"Synopsis": manual.synopsis(worker), "Options": manual.options(worker)},
        "bloomd.8": {
            "Synopsis": "".join(manual.synopsis(command) for command in bloomd.leaves() if command is not worker),
            "Commands": manual.commands(bloomd, elsewhere={"worker"}),
            "Checks": manual.names(CHECKS),
            "Options": manual.options(bloomd),
        },
        "bloomd-ctl.8": {"Commands": manual.commands(bloomd_ctl), "Options": manual.options(bloomd_ctl)},
    }
    for name, texts in regions.items():
        page = (ROOT / "man" / name).read_text()
        for region, text in texts.items():
            page = manual.renewed(page, region, text)
        yield f"man/{name}", page

    for command in (bloomd, bloomd_ctl):
        yield f"completions/{command.name}.bash", completions.bash(command)
        yield f"completions/_{command.name}", completions.zsh(command)
        yield f"completions/{command.name}.fish", completions.fish(command)
