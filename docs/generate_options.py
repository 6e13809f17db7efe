"""The fields of the options' dataclasses -> docs/options.md, so that the page cannot lag behind.

python docs/generate_options.py            # writes the page
python docs/generate_options.py --check    # exit status 1 if it is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

from qcompiler.options import GROUPS, Keywords, Option, options_of
from qcompiler.quality.demand import Demand
from qcompiler.training.request import Training

PAGE = Path(__file__).parent / "options.md"

HEAD = """\
# Options

Written by `python docs/generate_options.py`. Every option is a keyword of `qcompiler.compile` and
a flag of `qcompiler compile`, `quantize`, `retrain` and `inspect --plan`. The flag of an option
that is a list or a mapping may be given more than once, an entry each time.
"""
SEARCH = """\
How the loss that `--max-drop` allows is measured on the data of `--evaluation`
([quantization.md](quantization.md)):
"""
RETRAIN = """\
`qcompiler retrain` takes these in addition:
"""


def table(options: list[Option], first: str) -> list[str]:
    """Options -> the lines of a table."""
    lines = [f"| {first} | flag | type | default | meaning |", "|---|---|---|---|---|"]
    for o in options:
        flags = ", ".join(f"`{f}`" for f in o.flags) or "-"
        default = f"`{o.default!r}`"
        meaning = o.help + (f"; one of {', '.join(o.choices)}" if o.choices else "")
        kind = o.type.replace("|", "\\|")
        lines.append(f"| `{o.name}` | {flags} | `{kind}` | {default} | {meaning} |")
    return [*lines, ""]


def page() -> str:
    """The dataclasses -> the whole page."""
    lines = [HEAD]
    for group, purpose in GROUPS.items():
        lines += [f"## {group.capitalize()}", "", f"{purpose.capitalize()}.", ""] if group else []
        lines += table([o for o in options_of(Keywords) if o.group == group], "keyword")
    lines += ["## Accuracy", "", SEARCH, *table(list(options_of(Demand)), "field of `Demand`")]
    lines += [
        "## Retraining",
        "",
        RETRAIN,
        *table(list(options_of(Training)), "field of `Training`"),
    ]
    return "\n".join(lines)


def main() -> int:
    """Write the page, or with --check compare."""
    text = page()
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text() != text)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
