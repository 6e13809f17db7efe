"""A device that others use, and the use of one: `serve-device`, and the flag --remote."""

from __future__ import annotations

import ipaddress
import logging
import sys
import tempfile
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler.cli import show

if TYPE_CHECKING:
    from qcompiler.runtime.remote import RemoteModel

log = logging.getLogger(__name__)


def model(a: Namespace, threads: int) -> RemoteModel:
    """An artifact on the device that --remote names."""
    from qcompiler.runtime.remote import connect
    from qcompiler.runtime.remote.token import token

    device = connect(a.remote, token(a.token_file))
    try:
        return device.load(
            a.artifact, threads=threads, variant=a.variant, wait=a.wait, limit=a.limit
        )
    except BaseException:
        device.close()
        raise


def serve_device(a: Namespace) -> int:
    """Run and time what clients send, until the command is ended."""
    from qcompiler.runtime.remote.device import Limits, Server
    from qcompiler.runtime.remote.token import token

    secret = token(a.token_file)
    limits = Limits(
        artifact_bytes=a.max_megabytes << 20,
        store_bytes=a.store_megabytes << 20,
        run_seconds=a.limit,
    )
    with ExitStack() as stack:
        made = a.store or stack.enter_context(tempfile.TemporaryDirectory(prefix="qcompiler-"))
        place = Path(made) / "artifacts"
        server = stack.enter_context(Server((a.host, a.port), secret, place, limits))
        if not _loopback(a.host):
            log.warning(
                "listening to other machines: who knows the token runs native code here, and what "
                "is sent can be read on the way (an SSH tunnel hides it, see docs/remote.md)"
            )
        if a.json:
            show.say_json({"address": server.address})
        else:
            show.say(f"listening at {server.address}")
        sys.stdout.flush()
        server.serve()
    return 0


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
