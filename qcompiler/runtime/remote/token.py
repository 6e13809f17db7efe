"""The token that both sides share, from a file or QCOMPILER_TOKEN in the environment."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from qcompiler.errors import Error
from qcompiler.files import opened

LEAST_BYTES, MOST_BYTES = 16, 4096
VARIABLE = "QCOMPILER_TOKEN"
HINT = (
    "(umask 077; python3 -c 'import secrets; print(secrets.token_hex(32))' > token), "
    "the same file on both sides"
)


def token(path: Path | None) -> bytes:
    """The content of a file, or of the variable, stripped. Raises Error where there is none, where
    it is too short to be safe, and for a file that others may read.
    """
    if path is None:
        text, where = os.environ.get(VARIABLE, "").encode(), VARIABLE
        if not text:
            hint = f"--token-file FILE, or {VARIABLE}; to make one: {HINT}"
            raise Error("a device and its clients share a token, and none is given", hint=hint)
    else:
        text, where = _secret(path), str(path)
    found = text.strip()
    if not LEAST_BYTES <= len(found) <= MOST_BYTES:
        raise Error(
            f"a token of {LEAST_BYTES} characters or more is needed", where=where, hint=HINT
        )
    return found


def _secret(path: Path) -> bytes:
    with opened(path) as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise Error("others may read it", where=str(path), hint=f"chmod 600 {path}")
        return file.read(MOST_BYTES + 1)
