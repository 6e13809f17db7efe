"""The process in which an executor's stream runs its model: go -> done, again and again.

Arrays lie in memory that both sides have mapped (shared.py); what goes through the socket is one
byte each way. Whatever native code does to this process, the executor sees its end and goes on.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from qcompiler.artifact.artifact import Manifest
from qcompiler.errors import Error
from qcompiler.runtime.caller import Caller
from qcompiler.runtime.executor.processes import DONE, FAILED, GO, LENGTH
from qcompiler.runtime.executor.shared import Arena, filled, kinds_of, opened
from qcompiler.runtime.library import Memory, address
from qcompiler.runtime.model import load
from qcompiler.runtime.sockets import receive_all

_PR_SET_PDEATHSIG = 1  # linux/uapi/linux/prctl.h


def main(handle: int, arena: int, model: int, parent: int) -> None:
    """Serve the socket of this number until its other end, in process `parent`, is closed."""
    _alone(parent)
    connection = socket.socket(fileno=handle)
    with suppress(OSError):
        try:
            run = _ready(connection, arena, model)
        except Error as e:
            _say(connection, e)
            return
        connection.sendall(DONE)
        while connection.recv(len(GO)):
            try:
                run()
            except Error as e:
                _say(connection, e)
            else:
                connection.sendall(DONE)


def _alone(parent: int) -> None:
    """End with the thread that started this, and leave Ctrl-C to it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _ready(connection: socket.socket, arena: int, model: int) -> Callable[[], None]:
    """The model's description -> what runs it in the arena once."""
    (size,) = LENGTH.unpack(receive_all(connection, LENGTH.size))
    description = json.loads(receive_all(connection, size))
    made = load(opened(model, description), threads=description["threads"])
    os.close(model)
    memory, manifest = Arena(arena), made.manifest
    caller = made.caller(threads=description["threads"], spin_us=description["spin_us"])
    if manifest.symbols:
        return partial(_run_open, connection, caller, manifest, memory)
    arrays = memory.arrays(kinds_of(manifest, {}))
    return partial(caller.run_in, [Memory(array, address(array)) for array in arrays])


def _run_open(connection: socket.socket, caller: Caller, manifest: Manifest, memory: Arena) -> None:
    """Run for the open sizes that come next."""
    words = struct.Struct(f"<{len(manifest.symbols)}q")
    counts = words.unpack(receive_all(connection, words.size))
    sizes = dict(zip((s.name for s in manifest.symbols), counts))
    arrays, inputs = memory.arrays(kinds_of(manifest, sizes)), len(manifest.inputs)
    filled(caller.run(arrays[:inputs]), arrays[inputs:])


def _say(connection: socket.socket, error: Error) -> None:
    text = json.dumps({"what": error.what, "where": error.where, "hint": error.hint}).encode()
    connection.sendall(FAILED + LENGTH.pack(len(text)) + text)
