"""NVIDIA's driver, over the emulator: what runs models in the place of a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
from emulation import HERE, compiled, emulator, put_for_this_cpu

from qcompiler.runtime.cuda import driver as drivers

AMPLE = 1 << 40


@pytest.fixture(scope="session")
def library() -> str:
    """The path of the driver."""
    emulator()
    return str(compiled((HERE / "fake_driver.cc").read_text(), "-O1"))


@pytest.fixture
def fake(library: str) -> Iterator[ctypes.CDLL]:
    """The driver, of an A100 that has enough memory."""
    found = ctypes.CDLL(library)
    found.fake_set(13050, 8, 0, ctypes.c_int64(AMPLE))
    yield found
    found.fake_set(13050, 8, 0, ctypes.c_int64(AMPLE))
    drivers._held.clear()


@pytest.fixture
def installed(fake: ctypes.CDLL, library: str, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """The same as the system's driver."""
    monkeypatch.setattr(drivers, "LIBRARY", library)
    return fake


@pytest.fixture
def for_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code for this CPU in the place of cubins."""
    put_for_this_cpu(monkeypatch)
