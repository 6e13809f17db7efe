"""`python -m qcompiler` -> the command line."""

import sys

from qcompiler.cli import main

sys.exit(main())
