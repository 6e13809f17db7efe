"""Clients that the tests of executors and of servers share: threads at once, and a busy process
that forks.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def together(client: Callable[[int], None], count: int = 8) -> None:
    """client(0), client(1), ... at once, each on a thread; raises what the first to fail raised."""
    all_there = threading.Barrier(count)

    def begun(number: int) -> None:
        all_there.wait(60)
        client(number)

    with ThreadPoolExecutor(count) as threads:
        ends = [threads.submit(begun, i) for i in range(count)]
    for end in ends:
        end.result()


BUSY_FORK = """
import json, os, sys, threading
import numpy as np
from qcompiler import Executor, load
model = load(sys.argv[1])
x = np.ones(model.inputs[0].shape, np.float32)
wanted = model(x)[0]
executor = Executor(sys.argv[1], threads=1, **json.loads(sys.argv[2]))
stop = threading.Event()
def right():
    return np.array_equal(executor.run(x)[0], wanted)
def busy():
    while not stop.is_set():
        executor.run(x)
clients = [threading.Thread(target=busy) for _ in range(3)]
for client in clients: client.start()
failed = 0
for _ in range(int(sys.argv[3])):
    pid = os.fork()
    if not pid:
        ok = right()
        executor.close()
        os._exit(0 if ok else 1)
    failed += os.waitpid(pid, 0)[1] != 0
stop.set()
for client in clients: client.join()
ok = right()
executor.close()
sys.exit(not ok or failed != 0)
"""


def fork_while_busy(path: Path, times: int, **options: int) -> None:
    """A process forks while its threads run requests: child and parent go on to answer right."""
    words = [sys.executable, "-c", BUSY_FORK, str(path), json.dumps(options), str(times)]
    subprocess.run(words, check=True, timeout=120)
