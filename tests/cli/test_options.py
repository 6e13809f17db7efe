"""Every option is written once: keywords, flags and documentation are made from its field."""

from __future__ import annotations

import contextlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import qcompiler
from qcompiler.autotune.request import Tuning
from qcompiler.cli import flags
from qcompiler.cli.arguments import parser
from qcompiler.errors import Error
from qcompiler.export.request import Exporting
from qcompiler.options import Keywords, Options, options_of
from qcompiler.quality.demand import Demand
from qcompiler.runtime.executor.options import Executing
from qcompiler.training.request import Training

ROOT = Path(__file__).parents[2]
COMMANDS = [
    (Options, ["compile", "m.onnx"]),
    (Options, ["inspect", "m.onnx"]),
    (Training, ["retrain", "m.onnx", "--data", "d.npz"]),
    (Demand, ["compile", "m.onnx"]),
    (Exporting, ["export", "m.onnx", "-o", "folder"]),
]


@pytest.mark.parametrize(("made", "words"), COMMANDS)
def test_flags_left_out_are_the_defaults_of_the_fields(made: type, words: list[str]) -> None:
    a = parser().parse_args(words)
    more = {Training: {"data": 0}, Demand: {"drop": 0.0, "data": 0}}.get(made, {})
    maps = {"input_shapes": {}, "dims": {}, "opt_dims": {}}
    wanted = made(**(maps if issubclass(made, Options) else more))
    assert flags.read(made, a, **more) == wanted


def test_quantize_and_retrain_choose_their_own_precision() -> None:
    assert parser().parse_args(["quantize", "m.onnx"]).precision == "int8"
    assert parser().parse_args(["retrain", "m.onnx", "--data", "d"]).precision == ""


def test_flags_become_the_fields_that_they_name() -> None:
    words = (
        "compile m.onnx --target x86_avx2 --precision int8 --calibration-data-path c.npz"
        " --calibration-method mse --calibration-samples 7 --threads 3 --compress"
        " --input-shape x=1x3 --input-shapes a=b=[2,4]"
        " --dim n=1..8 --dim h=224 --opt-dim n=4 --pass p.py --pass q{a=1}"
        " --disabled-pass r --tuning-records t.json --exclude Conv --nodes-to-exclude .*head"
        " --prune 2:4 --prune-include A --prune-exclude B"
    )
    assert flags.read(Options, parser().parse_args(words.split())) == Options(
        target="x86_avx2",
        precision="int8",
        calibration="c.npz",
        calibration_method="mse",
        calibration_samples=7,
        threads=3,
        compress=True,
        input_shapes={"x": (1, 3), "a=b": (2, 4)},
        dims={"n": "1..8", "h": "224"},
        opt_dims={"n": 4},
        passes=("p.py", "q{a=1}"),
        disabled_passes=("r",),
        tuning_records="t.json",
        exclude=("Conv", ".*head"),
        prune=("2:4",),
        prune_include=("A",),
        prune_exclude=("B",),
    )
    words = "retrain m.onnx --data d --epochs 2 --rate 0.5 --batches 3 --teacher t --augment a,b"
    trained = flags.read(Training, parser().parse_args([*words.split(), "--gradual"]), data=0)
    assert trained == Training(
        0, epochs=2, rate=0.5, count=3, teacher=Path("t"), augment=("a", "b"), gradual=True
    )


def test_flags_of_exporting_read_amounts_of_memory() -> None:
    words = "export m.onnx -o f --name n --weights file --ram 256K --flash 1.5M --force"
    a = parser().parse_args(words.split())
    assert (a.name, a.weights, a.ram, a.flash, a.force) == ("n", "file", 1 << 18, 3 << 19, True)
    with pytest.raises(Error, match="amount of memory"):
        parser().parse_args(["export", "m.onnx", "-o", "f", "--ram", "much"])


@pytest.mark.parametrize("words", [["--threads", "-1"], ["--calibration-samples", "0"]])
def test_a_flag_refuses_a_number_that_is_too_small(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["compile", "m.onnx", f"{words[0]}={words[1]}"])


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "1e99", "long"])
def test_timing_refuses_what_is_no_number_of_seconds(seconds: str) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["bench", "m.qc", f"--duration={seconds}"])


@pytest.mark.parametrize(
    ("function", "made", "first"),
    [
        (qcompiler.compile, Keywords, ["model"]),
        (qcompiler.export_c, Exporting, ["model", "folder"]),
    ],
)
def test_functions_show_every_option_as_a_keyword(
    function: Callable[..., object], made: type, first: list[str]
) -> None:
    found = inspect.signature(function).parameters
    assert list(found) == [*first, *(o.name for o in options_of(made))]
    for o in options_of(made):
        assert found[o.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert found[o.name].default == o.default
        assert f"\n{o.name}: " in str(function.__doc__)
        assert all(c in str(function.__doc__) for c in o.choices)


def test_parameters_before_the_options_may_be_named() -> None:
    with pytest.raises(Error, match="cannot be read"):
        qcompiler.compile(model="absent.onnx")
    with pytest.raises(TypeError, match="options as keywords"):
        qcompiler.compile("absent.onnx", "host")
    with pytest.raises(TypeError, match="model"):
        qcompiler.compile()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"presicion": "int8"}, "no option 'presicion'\nhint: did you mean precision"),
        ({"disabled_pass": ["x"]}, "did you mean disabled_passes"),
        ({"zzz": 1}, "no option 'zzz'\nhint: the options are target, "),
        ({"precision": "int9"}, "unknown precision 'int9'\nhint: choose one of float32, "),
        ({"calibration_method": "best"}, "unknown calibration method 'best'"),
        ({"threads": -1}, "-1 threads\nhint: at least 0"),
        ({"calibration_samples": 0}, "0 calibration samples\nhint: at least 1"),
        ({"exclude": "Conv"}, "exclude: one word 'Conv', not a list"),
    ],
)
def test_a_keyword_that_cannot_be_meant_is_refused(given: dict[str, object], told: str) -> None:
    with pytest.raises(Error) as e:
        qcompiler.compile("m.onnx", **given)  # type: ignore[arg-type]
    assert told in str(e.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"threads": 1.5}, "threads: 1.5 given, int wanted"),
        ({"threads": "2"}, "threads: '2' given, int wanted"),
        ({"threads": True}, "threads: True given, int wanted"),
        ({"threads": None}, "threads: None given, int wanted"),
        ({"compress": "no"}, "compress: 'no' given, bool wanted"),
        ({"target": None}, "target: None given, str | Sequence[str] wanted"),
        ({"target": ["host", 3]}, "target: ['host', 3] given, str | Sequence[str] wanted"),
        ({"passes": None}, "passes: None given, Sequence[str] wanted"),
        ({"exclude": [3]}, "exclude: [3] given, Sequence[str] wanted"),
        ({"dims": "N=1..2"}, "dims: 'N=1..2' given, Mapping"),
        ({"input_shapes": [("x", (1,))]}, "input shapes: [('x', (1,))] given, Mapping"),
        ({"tuning_records": 3}, "tuning records: 3 given, str | Path wanted"),
        ({"progress": 3}, "progress: 3 given, Progress | None wanted"),
    ],
)
def test_a_value_of_another_type_is_refused(given: dict[str, object], told: str) -> None:
    with pytest.raises(Error) as e:
        qcompiler.compile("m.onnx", **given)  # type: ignore[arg-type]
    assert told in str(e.value)


def test_every_annotation_of_an_option_is_one_that_is_checked() -> None:
    unchecked = set()
    for made in (Exporting, Executing, Demand, Tuning, Training):
        for o in options_of(made):
            with contextlib.suppress(Error):
                o.checked(object())
                unchecked.add(o.type)
    assert unchecked == {"object", "Pool | None", "str | Path | onnx.ModelProto | None"}


def test_integers_of_numpy_become_integers_of_python() -> None:
    threads = Options(threads=np.int64(2)).threads  # type: ignore[arg-type]
    assert (type(threads), threads) == (int, 2)


@pytest.mark.parametrize("flag", ["--input-shape=x=1x{}", "--dim=x={}", "--opt-dim=x={}"])
def test_a_flag_that_names_one_thing_twice_is_refused(flag: str) -> None:
    a = parser().parse_args(["compile", "m.onnx", flag.format(3), flag.format(4)])
    with pytest.raises(Error, match=r"'x' is given twice"):
        flags.read(Options, a)


@pytest.mark.slow
def test_type_checkers_see_the_keywords(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text(
        "import qcompiler\n"
        'made = qcompiler.compile("m.onnx", precision="int8", threads=2)\n'
        'made.save("m.qc")\n'
        'qcompiler.compile("m.onnx", presicion="int8")\n'
        'qcompiler.compile("m.onnx", threads="2")\n'
    )
    words = [sys.executable, "-m", "mypy", "--strict", str(code)]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    errors = [line for line in run.stdout.splitlines() if "error:" in line]
    assert len(errors) == 2, run.stdout
    assert 'code.py:4: error: Unexpected keyword argument "presicion"' in errors[0]
    assert 'code.py:5: error: Argument "threads"' in errors[1]
