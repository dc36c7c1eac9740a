"""`make install` and `make uninstall`, in a directory instead of /."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scratch_machine import third_party
from tools import require

from bloomd import __version__

ROOT = Path(__file__).parents[2]

# Takes `-m venv [--without-pip] DIRECTORY`, and makes it at once: what pip would fetch is there already, and so is pip.
PYTHON = """\
#!/bin/sh
for last; do :; done
{python} -m venv --without-pip "$last" && echo {third_party} >"$(echo "$last"/lib/python3.*)/site-packages/x.pth"
"""

# These a person changes. Everything else comes and goes with the programs.
CONFIGURATION = {
    "etc/bloomd/bloomd.yaml",
    *(f"etc/{kind}/{service}" for kind in ("conf.d", "logrotate.d") for service in ("bloomd", "bloomd-worker")),
}

OURS = {
    "etc/init.d/bloomd",
    "etc/init.d/bloomd-worker",
    "etc/systemd/system/bloomd.service",
    "etc/systemd/system/bloomd-worker.service",
    "etc/sysusers.d/bloomd.conf",
    "etc/sysusers.d/bloomd-worker.conf",
    "PREFIX/bin/bloomd",
    "PREFIX/bin/bloomd-ctl",
    "PREFIX/share/doc/bloomd/bloomd.yaml.example",
    *(f"PREFIX/share/doc/bloomd/nginx/{file.name}" for file in (ROOT / "nginx").iterdir()),
    *(f"PREFIX/share/man/man{file.suffix[1:]}/{file.name}" for file in (ROOT / "man").glob("*.[58]")),
}


class Machine:
    """Its prefix is one that exists on this machine, too: what is installed can be brought there, and run."""

    def __init__(self, directory: Path) -> None:
        self.root, self.prefix = directory / "dest", directory / "prefix"
        self._python = directory / "python"
        (directory / "third-party").mkdir()
        self._python.write_text(
            PYTHON.format(python=shlex.quote(sys.executable), third_party=third_party(directory / "third-party"))
        )
        self._python.chmod(0o755)

    def make(self, *targets: str, path: Path = Path("/usr/bin")) -> None:
        variables = {"DESTDIR": self.root, "PREFIX": self.prefix, "PYTHON": self._python}
        command = [require("make"), "-C", ROOT, *targets, *(f"{name}={value}" for name, value in variables.items())]
        environ = {"PATH": f"{path}:/usr/bin:/bin", "PIP_NO_INDEX": "1", "LC_ALL": "C"}
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False, timeout=120)
        assert done.returncode == 0, done.stderr

    def files(self) -> set[str]:
        """What is in it, but for what is in the virtual environment."""
        environment = self.root / self.prefix.relative_to("/") / "lib/bloomd"
        return {
            str(path.relative_to(self.root)).replace(str(self.prefix)[1:], "PREFIX")
            for path in self.root.rglob("*")
            if (path.is_file() or path.is_symlink()) and environment not in path.parents
        }

    def text(self, name: str) -> str:
        return (self.root / name).read_text()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """One for all tests, in their order, as a virtual environment takes a few seconds."""
    machine = Machine(tmp_path_factory.mktemp("make-install"))
    machine.make("install")
    return machine


def test_everything_is_in_its_place(machine):
    completions = {name for name in machine.files() if "completions" in name or "site-functions" in name}
    assert machine.files() - completions == OURS | CONFIGURATION
    assert len(completions) == len([*(ROOT / "completions").glob("*")])
    for name in ("etc/init.d/bloomd", "PREFIX/bin/bloomd"):
        file = machine.root / name.replace("PREFIX", str(machine.prefix)[1:])
        assert file.stat().st_mode & 0o777 == 0o755
    assert (machine.root / "etc/bloomd/bloomd.yaml").stat().st_mode & 0o777 == 0o640


def test_what_starts_the_programs_finds_them(machine):
    """And what is not ours is still looked for where it is."""
    programs = f"{machine.prefix}/bin"
    assert f"\nExecStart={programs}/bloomd run " in machine.text("etc/systemd/system/bloomd.service")
    assert f"\nExecReload={programs}/bloomd-ctl reload\n" in machine.text("etc/systemd/system/bloomd.service")
    assert "\nExecStartPre=/usr/bin/install " in machine.text("etc/systemd/system/bloomd.service")
    assert f"\nExecStart={programs}/bloomd worker " in machine.text("etc/systemd/system/bloomd-worker.service")
    assert ":/usr/local/bin:/usr/bin:/bin\n" in machine.text("etc/systemd/system/bloomd-worker.service")
    for service in ("bloomd", "bloomd-worker"):
        assert f': "${{BLOOMD_BIN:={programs}}}"\n' in machine.text(f"etc/init.d/{service}")
        assert f'#BLOOMD_BIN="{programs}"\n' in machine.text(f"etc/conf.d/{service}")


def test_the_programs_run_where_they_are_to_be_and_know_nothing_of_where_they_were_made(machine):
    shutil.copytree(machine.root / machine.prefix.relative_to("/"), machine.prefix, symlinks=True)
    for name in ("bloomd", "bloomd-ctl"):
        said = subprocess.run([machine.prefix / "bin" / name, "--version"], capture_output=True, text=True, check=True)
        assert said.stdout == f"{name} {__version__}\n"
    named = [  # in compiled code Python puts it right
        path
        for path in machine.prefix.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and str(machine.root).encode() in path.read_bytes()
    ]
    assert named == []
    where = "import bloomd; print(bloomd.__file__)"
    python = machine.prefix / "lib/bloomd/bin/python"
    found = subprocess.run([python, "-I", "-c", where], capture_output=True, text=True, check=True).stdout
    assert found.startswith(f"{machine.prefix}/lib/bloomd/lib/")


# Notes down whenever the programs are not there once something was removed.
RM = """\
#!/bin/sh
/bin/rm "$@"
[ -x {program} ] || echo "rm $*" >>{notes}
"""


def test_an_upgrade_replaces_what_is_ours_and_leaves_what_a_person_has_changed(machine, tmp_path):
    """And the programs are there all the time, but for the moment of a rename."""
    program = machine.root / machine.prefix.relative_to("/") / "lib/bloomd/bin/bloomd"
    (tmp_path / "rm").write_text(RM.format(program=program, notes=tmp_path / "notes"))
    (tmp_path / "rm").chmod(0o755)
    for name in ("etc/bloomd/bloomd.yaml", "etc/conf.d/bloomd", "etc/init.d/bloomd"):
        (machine.root / name).write_text("# changed\n")
    before = machine.files()
    machine.make("install", path=tmp_path)
    assert machine.files() == before
    assert not (tmp_path / "notes").exists(), (tmp_path / "notes").read_text()
    assert [each.name for each in program.parents[2].iterdir()] == ["bloomd"]
    assert machine.text("etc/bloomd/bloomd.yaml") == machine.text("etc/conf.d/bloomd") == "# changed\n"
    assert machine.text("etc/init.d/bloomd").startswith("#!/sbin/openrc-run\n")


def test_an_uninstallation_leaves_configuration_and_data(machine):
    data = {"var/lib/bloomd/data", "var/log/bloomd/bloomd.log", "etc/bloomd/api.key", "etc/init.d/other"}
    for name in data:
        (machine.root / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.root / name).touch()
    for _ in range(2):
        machine.make("uninstall")
        assert machine.files() == CONFIGURATION | data
        assert not (machine.root / machine.prefix.relative_to("/") / "lib/bloomd").exists()
        assert not (machine.root / machine.prefix.relative_to("/") / "share/doc/bloomd").exists()


@pytest.mark.parametrize("does", ["is-active", "is-enabled"])
def test_nothing_is_uninstalled_while_systemd_runs_it_or_would_start_it(tmp_path, does):
    """Without DESTDIR, which is below a directory of ours all the same."""
    (tmp_path / "systemctl").write_text(f'#!/bin/sh\n[ "$*" = "{does} bloomd-worker" ]\n')
    (tmp_path / "systemctl").chmod(0o755)
    program = tmp_path / "prefix/bin/bloomd"
    program.parent.mkdir(parents=True)
    program.touch()
    command = [require("make"), "-C", ROOT, "uninstall", f"PREFIX={tmp_path}/prefix", f"SYSCONFDIR={tmp_path}/etc"]
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LC_ALL": "C"}
    refused = subprocess.run(command, capture_output=True, text=True, env=environ, check=False, timeout=60)
    assert (refused.returncode, program.exists()) == (2, True)
    assert "systemctl disable --now bloomd-worker" in refused.stderr
