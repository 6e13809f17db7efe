"""Artifacts and servers that these tests share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "executor"))

import models
from served import Server, serving


@pytest.fixture(scope="session")
def batched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.product(batch=8).save(tmp_path_factory.mktemp("served") / "batched.qc")


@pytest.fixture(scope="session")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.doubling().save(tmp_path_factory.mktemp("served") / "doubling.qc")


@pytest.fixture(scope="session")
def server(batched: Path, doubling: Path) -> Iterator[Server]:
    """Of both, each as it was compiled."""
    pytest.importorskip("starlette", reason="the extra [serve] is not installed")
    pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
    words = ("--streams", "2", "--threads", "1", "--max-body-megabytes", "1")
    with serving(batched, f"two={doubling}", *words) as found:
        yield found
