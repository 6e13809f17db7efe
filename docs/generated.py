"""A page that is made from the program: written, or compared with the one that is there."""

from __future__ import annotations

import sys
from pathlib import Path


def main(page: Path, text: str) -> int:
    """Write the page; with --check compare, exit status 1 if it is out of date."""
    if "--check" in sys.argv[1:]:
        return int(not page.exists() or page.read_text() != text)
    page.write_text(text)
    return 0
