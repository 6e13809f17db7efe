"""A server that these tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Server, serving


@pytest.fixture(scope="session")
def server(batched: Path, doubling: Path) -> Iterator[Server]:
    """Of both, each as it was compiled."""
    pytest.importorskip("starlette", reason="the extra [serve] is not installed")
    pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
    words = ("--streams", "2", "--threads", "1", "--max-body-megabytes", "1")
    with serving(batched, f"two={doubling}", *words) as found:
        yield found
