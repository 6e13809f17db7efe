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
import sys
from contextlib import suppress

from qcompiler.errors import Error
from qcompiler.runtime.caller import Caller
from qcompiler.runtime.executor.processes import DONE, FAILED, LENGTH
from qcompiler.runtime.executor.shared import Arena, opened
from qcompiler.runtime.library import Memory
from qcompiler.runtime.model import Model, input_specs
from qcompiler.runtime.sockets import receive_all

_PR_SET_PDEATHSIG = 1  # linux/uapi/linux/prctl.h


def main(handle: int, arena: int, model: int, parent: int) -> None:
    """Serve the socket of this number until its other end, in process `parent`, is closed."""
    _alone(parent)
    connection = socket.socket(fileno=handle)
    with suppress(OSError):
        try:
            caller, arrays = _ready(connection, arena, model)
        except Error as e:
            _say(connection, e)
            return
        connection.sendall(DONE)
        while connection.recv(1):
            try:
                caller.run_in(arrays)
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


def _ready(connection: socket.socket, arena: int, model: int) -> tuple[Caller, list[Memory]]:
    """The model's description -> what runs it, and the arrays that it runs on."""
    (size,) = LENGTH.unpack(receive_all(connection, LENGTH.size))
    description = json.loads(receive_all(connection, size))
    made = Model(opened(model, description), threads=description["threads"])
    os.close(model)
    kinds = [spec[2:] for spec in (*input_specs(made.inputs), *input_specs(made.outputs))]
    places = Arena(kinds, arena).places
    return made.caller(threads=description["threads"], spin_us=description["spin_us"]), places


def _say(connection: socket.socket, error: Error) -> None:
    text = json.dumps({"what": error.what, "where": error.where, "hint": error.hint}).encode()
    connection.sendall(FAILED + LENGTH.pack(len(text)) + text)
