import grp
import os
import socket
import stat
import threading
from pathlib import Path

import pytest
import structlog.testing

from bloomd.control.listener import Listener, bind, unbind
from bloomd.errors import Misconfigured


def listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def test_the_socket_is_for_its_user_and_group_from_the_first_moment(path: str) -> None:
    group = grp.getgrgid(os.getegid()).gr_name
    before = os.umask(0)
    os.umask(before)
    listener = bind(path, group)
    try:
        status = os.stat(path)
        assert stat.filemode(status.st_mode) == "srw-rw----"
        assert status.st_gid == os.getegid()
        assert os.umask(before) == before
        assert listens(path)
        assert not os.get_inheritable(listener.socket.fileno())
    finally:
        unbind(listener)
    assert not os.path.exists(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give the socket to a group it is not in")
def test_the_socket_is_given_to_its_group(path: str) -> None:
    group = grp.getgrall()[-1]
    listener = bind(path, group.gr_name)
    assert os.stat(path).st_gid == group.gr_gid
    unbind(listener)


def test_a_group_that_does_not_exist_is_no_obstacle(path: str) -> None:
    with structlog.testing.capture_logs() as logs:
        unbind(bind(path, "no-such-group"))
    assert logs[0]["event"].startswith("no such group")


def test_a_stale_socket_is_taken_over(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(path)
    with structlog.testing.capture_logs() as logs:
        listener = bind(path, "no-such-group")
    assert listens(path)
    assert logs[0]["event"] == "removing the stale socket of a daemon that was killed"
    unbind(listener)


def test_a_second_daemon_is_told_about_the_first(path: str) -> None:
    first = bind(path, "no-such-group")
    with pytest.raises(Misconfigured, match=f"another bloomd \\(pid {os.getpid()}\\) is running on {path}"):
        bind(path, "no-such-group")
    assert listens(path)
    unbind(first)


def test_a_first_daemon_that_is_too_busy_to_answer_is_still_there(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(path)
        busy.listen(0)
        waiting.connect(path)
        with pytest.raises(Misconfigured, match="another bloomd, too busy to answer"):
            bind(path, "no-such-group")
        assert os.path.exists(path)


def test_of_many_daemons_that_start_on_a_stale_socket_one_wins(path: str) -> None:
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(path)
        together = threading.Barrier(4)
        won: list[Listener] = []
        lost: list[Misconfigured] = []

        def start(together: threading.Barrier = together, won: list = won, lost: list = lost) -> None:
            together.wait()
            try:
                won.append(bind(path, "no-such-group"))
            except Misconfigured as error:
                lost.append(error)

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 3)
        assert listens(path)
        unbind(won[0])


def test_a_file_that_is_no_socket_is_left_alone(path: str) -> None:
    Path(path).write_text("mine")
    with pytest.raises(Misconfigured, match="exists and is not a socket"):
        bind(path, "no-such-group")
    assert Path(path).read_text() == "mine"


def test_a_directory_that_is_not_there_is_named(directory: Path) -> None:
    with pytest.raises(Misconfigured, match=f"the directory {directory}/run does not exist; create it"):
        bind(f"{directory}/run/bloomd.sock", "no-such-group")


def test_a_path_that_is_too_long_is_told_so(directory: Path) -> None:
    with pytest.raises(Misconfigured, match="at most 107 bytes"):
        bind(f"{directory}/{'x' * 120}", "no-such-group")
    assert list(directory.iterdir()) == []


def test_the_file_of_another_is_not_removed(path: str) -> None:
    first = bind(path, "no-such-group")
    os.rename(path, f"{path}.moved")  # so that the inode stays taken
    second = bind(path, "no-such-group")
    unbind(first)
    assert listens(path)
    unbind(second)
    assert not os.path.exists(path)


def test_a_file_that_is_gone_already_is_no_error(path: str) -> None:
    listener = bind(path, "no-such-group")
    os.unlink(path)
    unbind(listener)
