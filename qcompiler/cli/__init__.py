"""The command line: `qcompiler COMMAND`, one of commands.py.

Exit codes: 0 done; 1 a clear error or a comparison beyond its limits; 2 wrong usage; 130
interrupted.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence

from qcompiler.errors import Error, compiler_missing


def main(words: Sequence[str] | None = None) -> int:
    """Command-line words -> exit code."""
    from qcompiler.cli.arguments import parser

    arguments = parser().parse_args(words)
    logging.basicConfig(
        level=arguments.log_level.upper(), format="%(levelname)s %(name)s: %(message)s"
    )
    from qcompiler.cli.commands import COMMANDS

    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal of few characters still gets words
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return COMMANDS[arguments.command](arguments)
    except Error as e:
        return _say_error(str(e))
    except ImportError as e:
        missing = compiler_missing(e)
        if missing is None:
            raise
        return _say_error(str(missing))
    except MemoryError:
        return _say_error("out of memory\nhint: fewer calibration samples, or a smaller batch")
    except BrokenPipeError:  # the reader of our output has left; nothing more can be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:  # a full disk, a file that vanished
        where = f"{e.filename}: " if e.filename else ""
        return _say_error(f"{where}{e.strerror or e}")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


def _say_error(text: str) -> int:
    from qcompiler.cli.show import plain

    sys.stderr.write(f"error: {plain(text)}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
