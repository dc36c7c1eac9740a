"""The names of objects begin with what a store can hold."""

import pytest

from bloomd.settings.values import COMPLAINTS


@pytest.mark.parametrize("prefix", ["", "bloom/", "a/b-c_d/", "bloom"])
def test_a_good_one(prefix: str) -> None:
    assert COMPLAINTS["minio.prefix"](prefix) is None


@pytest.mark.parametrize("prefix", ["/", "/a/", "a//b/", "../", "./", "x/../y/"])
def test_one_with_a_part_that_no_store_takes(prefix: str) -> None:
    assert "between slashes" in (COMPLAINTS["minio.prefix"](prefix) or "")


@pytest.mark.parametrize("prefix", ["ключ/", "a b/", "x" * 201])
def test_one_of_other_characters(prefix: str) -> None:
    assert "letters, digits" in (COMPLAINTS["minio.prefix"](prefix) or "")
