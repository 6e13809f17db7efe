"""The command line: `qcompiler compile | run | bench | inspect | compare | targets | demo`.

Exit codes: 0 done; 1 a clear error or a comparison beyond its limits; 2 wrong usage; 130
interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from qcompiler.errors import Error


def main(words: Sequence[str] | None = None) -> int:
    """Command-line words -> exit code."""
    from qcompiler.cli.arguments import parser

    arguments = parser().parse_args(words)
    logging.basicConfig(
        level=arguments.log_level.upper(), format="%(levelname)s %(name)s: %(message)s"
    )
    from qcompiler.cli import commands

    action = getattr(commands, arguments.command)
    try:
        return int(action(arguments))
    except Error as e:
        sys.stderr.write(f"error: {e}\n")
        return 1
    except MemoryError:
        sys.stderr.write(
            "error: out of memory\nhint: fewer calibration samples, or a smaller batch\n"
        )
        return 1
    except BrokenPipeError:  # the reader of our output has left; nothing more can be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was written\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
