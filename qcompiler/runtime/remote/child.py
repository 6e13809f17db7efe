"""The process in which a device runs what it was sent: messages in, messages out.

    {artifact, bytes, shapes, threads, variant, iterations, seconds, warmup, steps} + inputs  ->
    {bytes, shapes, times, steps, threads, variant, load_seconds, first_seconds}
        + outputs, times, steps

Inputs and outputs are the arrays' bytes, in the manifest's order; times and steps float64. Where
native code crashes this process, the server goes on.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import time
from contextlib import suppress

import numpy as np

from qcompiler.dtypes import Array
from qcompiler.errors import Error
from qcompiler.runtime import Model, load
from qcompiler.runtime.remote import facts
from qcompiler.runtime.remote.wire import Lost, Message, pair
from qcompiler.runtime.timing import again, once

_PR_SET_PDEATHSIG = 1  # linux/uapi/linux/prctl.h
_WAIT_SECONDS = 1e6
Held = dict[tuple[str, int, str], tuple[Model, float]]
"""The loaded model, by its path, threads and variant, and the seconds that loading took."""


def main(handle: int, parent: int) -> None:
    """Serve the socket with descriptor `handle` until process `parent` closes its end."""
    _alone(parent)
    channel = pair(socket.socket(fileno=handle))
    held: Held = {}
    with suppress(Lost):
        channel.send({"ready": True})
        while True:
            request, _ = channel.receive(_WAIT_SECONDS)
            data = bytearray()
            channel.receive_bytes(facts.count(request, "bytes"), data.extend)
            answer, made = _answer(held, request, data)
            channel.send(answer)
            channel.send_bytes(made)


def _alone(parent: int) -> None:
    """Leave no trace: end with the parent, write no core file, be the first to be killed where
    memory is short, and discard what native code prints.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)


def _answer(held: Held, request: Message, data: bytearray) -> tuple[Message, bytes]:
    try:
        return _run(held, request, data)
    except Error as e:
        return facts.error_message(e), b""
    except MemoryError:
        return facts.error_message(Error("the device has not enough memory for it")), b""


def _run(held: Held, request: Message, data: bytearray) -> tuple[Message, bytes]:
    """Run it once, then time it as requested."""
    path, variant = facts.text(request, "artifact"), facts.text(request, "variant")
    model, loaded = _model(held, path, facts.count(request, "threads"), variant)
    inputs = facts.arrays(model.inputs, data, request)
    outputs: dict[str, Array] = {}

    def run() -> None:
        outputs.update(model.run(inputs))

    first, times = once(run), []
    iterations, seconds = facts.count(request, "iterations"), facts.seconds(request, "seconds")
    if iterations or seconds:
        warmup = facts.count(request, "warmup")
        times = again(run, iterations=iterations, seconds=seconds, warmup=warmup)
    rounds = facts.count(request, "steps")
    steps = model.profile(inputs, repeat=rounds) if rounds else []
    results = [outputs[v.name] for v in model.outputs]
    made = b"".join(a.tobytes() for a in (*results, np.array(times), np.array(steps)))
    return {
        "bytes": len(made),
        "shapes": [a.shape for a in results],
        "times": len(times),
        "steps": len(steps),
        "threads": model.threads,
        "variant": model.variant.isa,
        "load_seconds": loaded,
        "first_seconds": first,
    }, made


def _model(held: Held, path: str, threads: int, variant: str) -> tuple[Model, float]:
    """A model and the seconds it took to load; the last one stays loaded."""
    if (path, threads, variant) not in held:
        held.clear()
        start = time.perf_counter()
        model = load(path, threads=threads, variant=variant)
        held[path, threads, variant] = model, time.perf_counter() - start
    return held[path, threads, variant]
