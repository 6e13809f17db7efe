"""A device that others use, and the use of one: `serve-device`, and the flags --remote and
--tracker.
"""

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
from qcompiler.errors import Error

if TYPE_CHECKING:
    from qcompiler.runtime.remote import RemoteModel
    from qcompiler.runtime.remote.device import Server
    from qcompiler.runtime.remote.tracker import Registered

log = logging.getLogger(__name__)


def model(a: Namespace, threads: int) -> RemoteModel:
    """An artifact on the device that --remote names, or that a tracker gives, which then is
    `a.remote`.
    """
    from qcompiler.runtime.remote import connect
    from qcompiler.runtime.remote.token import token
    from qcompiler.runtime.remote.tracker import request

    secret = token(a.token_file)
    if tracker := _tracker(a):
        if a.remote:
            raise Error("--remote is one device, --tracker any of a kind", hint="leave one out")
        a.remote = request(tracker, a.key, a.wait)
    device = connect(a.remote, secret)
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
        if tracker := _tracker(a):
            stack.enter_context(_registered(a, tracker, server))
        if a.json:
            show.say_json({"address": server.address})
        else:
            show.say(f"listening at {server.address}")
        sys.stdout.flush()
        server.serve()
    return 0


def elsewhere(a: Namespace) -> bool:
    """Does another machine run it?"""
    return bool(a.remote or a.tracker)


def _tracker(a: Namespace) -> str:
    """The tracker's address; "" for none. Raises Error where one of its flags is missing."""
    if bool(a.tracker) != bool(a.key):
        raise Error("--tracker and --key go together", hint="--tracker HOST:9190 --key rpi5")
    return a.tracker or ""


def _registered(a: Namespace, tracker: str, server: Server) -> Registered:
    from qcompiler.runtime.remote.client import split
    from qcompiler.runtime.remote.tracker import Registered

    _, port = split(server.address)
    host = None if a.host in ("0.0.0.0", "::") else a.host
    return Registered(tracker, a.key, port, lambda: server.busy, host=host)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
