"""The folder of artifacts on a device, and the token's file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qcompiler.errors import Error
from qcompiler.runtime.remote.store import Store
from qcompiler.runtime.remote.token import VARIABLE, token


def put(store: Store, data: bytes, at: float = 0) -> str:
    digest = hashlib.sha256(data).hexdigest()
    store.add(digest, lambda take: take(data))
    if at:
        os.utime(store.folder / f"{digest}.qc", (at, at))
    return digest


def test_what_was_added_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "b", 100)
    path = store.find(put(store, b"one"))
    assert path
    assert path.read_bytes() == b"one"
    assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0
    assert store.find("0" * 64) is None


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    store = Store(tmp_path, 100)
    old, older = put(store, b"a" * 40, 2000), put(store, b"b" * 40, 1000)
    newest = put(store, b"c" * 40)
    assert store.find(older) is None
    assert store.find(old)
    assert store.find(newest)
    large = put(store, b"d" * 400)  # is kept alone, for its run
    assert store.find(large)
    assert store.find(newest) is None


def test_another_server_finds_them_unless_they_are_damaged(tmp_path: Path) -> None:
    first = Store(tmp_path, 100)
    kept, damaged = put(first, b"kept"), put(first, b"whole")
    (tmp_path / f"{damaged}.qc").write_bytes(b"other")
    (tmp_path / ".half-123").write_bytes(b"of a server that was killed")
    second = Store(tmp_path, 100)
    assert second.find(kept)
    assert second.find(damaged) is None
    assert [p.stem for p in tmp_path.iterdir()] == [kept]


def test_a_folder_that_is_gone_is_an_error_after_all_was_received(tmp_path: Path) -> None:
    store, parts = Store(tmp_path / "gone", 100), [b"one", b"two"]
    store.folder.rmdir()

    def receive(take: Callable[[bytes], object]) -> None:
        while parts:
            take(parts.pop())

    with pytest.raises(Error, match="the device cannot keep the artifact"):
        store.add("0" * 64, receive)
    assert not parts


def test_what_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, 100)

    def half(take: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.add("0" * 64, half)
    assert not list(tmp_path.iterdir())


def test_a_token_is_read_from_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("  0123456789abcdef\n")
    path.chmod(0o600)
    assert token(path) == b"0123456789abcdef"
    path.chmod(0o640)
    with pytest.raises(Error, match="others may read it"):
        token(path)
    with pytest.raises(Error, match="cannot be read"):
        token(tmp_path / "none")


def test_a_token_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0123456789abcdef")
    assert token(None) == b"0123456789abcdef"
    monkeypatch.setenv(VARIABLE, "short")
    with pytest.raises(Error, match="16 characters or more"):
        token(None)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(Error, match="share a token") as error:
        token(None)
    assert "--token-file" in error.value.hint
