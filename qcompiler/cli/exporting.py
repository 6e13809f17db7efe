"""The command that makes something for other languages: arguments -> exit code."""

from __future__ import annotations

from argparse import Namespace

from qcompiler.artifact.artifact import is_artifact
from qcompiler.cli import show
from qcompiler.cli.flags import read
from qcompiler.cli.making import say_skips, watch_of
from qcompiler.errors import Error
from qcompiler.export.request import Exporting
from qcompiler.files import size
from qcompiler.options import Options, options_of


def export(a: Namespace) -> int:
    """ONNX model or artifact -> a folder for C."""
    from qcompiler.export import cost
    from qcompiler.export.c import export_c

    options = read(Exporting, a)
    if is_artifact(a.model):
        _demand_no_compiling(a, options)
    with show.ProgressBar(enabled=not a.no_progress) as bar:
        watch, skips = watch_of(a, bar)
        made = export_c(a.model, a.output, options, watch)
    if a.json:
        said = {"skips": skips} if a.explain else {}
        files = sorted(p.name for p in a.output.iterdir())
        answer = {"folder": str(a.output), "name": made.facts.name, "target": made.facts.target}
        show.say_json({**answer, "files": files, **made.cost.facts, **said})
        return 0
    say_skips(a, skips)
    show.say(cost.table(made.cost))
    show.say(
        f"{a.model} -> {a.output}: {made.facts.name}_run for {made.facts.target}, "
        f"RAM {size(made.cost.ram)}, flash {size(made.cost.flash)}"
    )
    return 0


def _demand_no_compiling(a: Namespace, options: Options) -> None:
    """Flags of compiling have no say in what is compiled already."""
    for o in options_of(Options):
        if o.flags and getattr(options, o.name) not in (o.default, {}):
            raise Error(
                f"{o.flags[0]} says how to compile a model, and this is compiled already",
                where=str(a.model),
                hint="export the ONNX model, or leave the flag out",
            )
