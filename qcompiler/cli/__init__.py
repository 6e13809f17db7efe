"""The command line: `qcompiler COMMAND`, one of commands.py.

Exit codes: 0 success; 1 an error, or a comparison that exceeds its limits; 2 wrong usage; 130
interrupted; 143 ended by SIGTERM; 129 by SIGHUP, as when its terminal is closed.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from qcompiler.errors import Error, compiler_missing


def main(words: Sequence[str] | None = None) -> int:
    """Command-line words -> exit code."""
    try:
        with _ended_by_signals():
            return _run(words)
    except Error as e:
        return _say_error(str(e))
    except ImportError as e:
        missing = compiler_missing(e)
        if missing is None:
            raise
        return _say_error(str(missing))
    except MemoryError:
        return _say_error("out of memory\nhint: fewer calibration samples, or a smaller batch")
    except BrokenPipeError:  # the reader of our output has gone; nothing more can be written to it
        _drop_output()
        return 1
    except OSError as e:  # a full disk, a file that vanished
        _drop_output()
        where = f"{e.filename}: " if e.filename else ""
        return _say_error(f"{where}{e.strerror or e}")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


def _run(words: Sequence[str] | None) -> int:
    """Parse and run the command; flush its output, or raise OSError if that fails."""
    from qcompiler.cli.arguments import parsed

    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal with few characters still shows words
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        arguments = parsed(words)
    except SystemExit:  # --help, --version, wrong usage
        sys.stdout.flush()
        raise
    logging.basicConfig(
        level=arguments.log_level.upper(), format="%(levelname)s %(name)s: %(message)s"
    )
    from qcompiler.cli.commands import COMMANDS

    code = COMMANDS[arguments.command](arguments)
    sys.stdout.flush()
    return code


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command like Ctrl-C: partly written files and temporary folders
    are removed on the way out. One that is ignored, as SIGHUP is under nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    heard = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def _drop_output() -> None:
    """Discard output that cannot be written, so that Python does not retry when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say_error(text: str) -> int:
    from qcompiler.cli.show import plain

    sys.stderr.write(f"error: {plain(text)}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
