from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server, s3_server
from tools import require


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    with s3_server(require("rclone"), tmp_path) as server:
        yield server
