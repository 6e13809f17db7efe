"""The flags of commands that need the compiler, which the runtime alone comes without."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler.autotune.request import Tuning
from qcompiler.cli import flags
from qcompiler.cli.arguments import Parser, seconds, token_flag
from qcompiler.export.request import Exporting
from qcompiler.options import Options
from qcompiler.quality.demand import Demand
from qcompiler.training.request import Training

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[Parser]


def add(commands: Commands, common: Parser) -> None:
    """Add the commands; `common`: the flags that all have."""
    made = commands.add_parser("compile", parents=[common], help="ONNX model -> artifact")
    made.add_argument("model", type=Path, help="an .onnx file")
    made.add_argument("-o", "--output", type=Path, help="artifact to write (default: MODEL.qc)")
    compile_flags(made)
    _search_flags(made)
    made.add_argument("--dry-run", action="store_true", help="plan only; write nothing")

    quantize = commands.add_parser(
        "quantize", parents=[common], help="ONNX model -> quantized ONNX model (explicit QDQ)"
    )
    quantize.add_argument("model", type=Path, help="an .onnx file")
    quantize.add_argument(
        "-o", "--output", type=Path, help="model to write (default: MODEL.qdq.onnx)"
    )
    compile_flags(quantize, omit=("compress",), precision="int8")

    retrain = commands.add_parser(
        "retrain", parents=[common], help="tune weights for quantization or pruning (needs torch)"
    )
    retrain.add_argument("model", type=Path, help="an .onnx file")
    retrain.add_argument("--data", type=Path, required=True, help="samples, as for --calibration")
    retrain.add_argument("-o", "--output", type=Path, help="default: MODEL.retrained.onnx")
    flags.add(retrain, Training)
    # int8, unless --prune or --pass asks for something else
    compile_flags(retrain, omit=("compress",), precision="")

    export = commands.add_parser(
        "export", parents=[common], help="ONNX model or artifact -> object file and header for C"
    )
    export.add_argument("model", type=Path, help="an .onnx file or an artifact")
    export.add_argument("-o", "--output", type=Path, required=True, help="folder to make")
    export.add_argument("--format", choices=("c",), default="c", help="for whom (default: c)")
    compile_flags(export, Exporting, omit=("compress",))

    _tune_commands(commands, common)


def _tune_commands(commands: Commands, common: Parser) -> None:
    tune = commands.add_parser(
        "tune", parents=[common], help="measure which kernels are fastest for ONNX models"
    )
    tune.add_argument("models", type=Path, nargs="+", help="one or more .onnx files")
    tune.add_argument(
        "-o", "--output", type=Path, help="records to add to (default: MODEL.records.jsonl)"
    )
    flags.add(tune, Tuning)
    tune.add_argument("--dry-run", action="store_true", help="print what there is to tune")
    compile_flags(tune, omit=("tuning_records", "compress"))
    group = tune.add_argument_group("another machine")
    group.add_argument(
        "--remote",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="measure there, where `qcompiler serve-device` runs; several that are alike share the"
        " work",
    )
    token_flag(group)
    group.add_argument(
        "--wait", type=seconds, default=60.0, help="seconds that others may keep a device busy"
    )

    records = commands.add_parser(
        "records", parents=[common], help="show, merge or prune files of tuning records"
    )
    does = ("show", "merge", "prune")
    records.add_argument("do", choices=does, metavar="|".join(does))
    records.add_argument(
        "files", type=Path, nargs="+", help="where several choose, the last counts"
    )
    records.add_argument("-o", "--output", type=Path, help="file to write (merge and prune)")


def compile_flags(
    parser: argparse.ArgumentParser,
    made: type = Options,
    omit: Sequence[str] = (),
    **defaults: object,
) -> None:
    """Add the flags of how to compile, as those of flags.add, and of what to tell of it."""
    flags.add(parser, made, omit, **defaults)
    parser.add_argument(
        "--explain",
        action="store_true",
        help="print every Skip and its reason; with inspect --plan also the kernels that lost",
    )
    parser.add_argument("--dump", type=Path, metavar="DIR", help="write the graph after each stage")


def _search_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "accuracy", "find the fastest int8 artifact within a loss of accuracy"
    )
    group.add_argument(
        "--max-drop",
        metavar="POINTS",
        help="the most to lose: 0.5 (points of the metric) or 1%% (of its value)",
    )
    group.add_argument(
        "--evaluation", metavar="DATA", help="data to measure on, as for --calibration"
    )
    flags.add(group, Demand)
    group.add_argument(
        "--report", type=Path, metavar="FILE.html", help="write a report; and the same as FILE.json"
    )
