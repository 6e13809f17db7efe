"""Every option, written once: the keywords of `qcompiler.compile`, the flags of the command line
and the tables of docs/options.md are made from the fields here. Imports nothing of the compiler.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import update_wrapper
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from qcompiler.errors import Error

if TYPE_CHECKING:
    from typing import Concatenate, ParamSpec

    from qcompiler.ir import Graph, Node
    from qcompiler.rewrite import Explain

    P = ParamSpec("P")

log = logging.getLogger(__name__)

PRECISIONS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "float32": ("", {}),
    "bfloat16": ("quantize_half", {"dtype": "bfloat16"}),
    "float16": ("quantize_half", {"dtype": "float16"}),
    "int8": ("quantize_static", {}),
    "int8-dynamic": ("quantize_dynamic", {}),
    "int8-weights": ("quantize_weights", {"bits": 8, "group": 0}),
    "int4": ("quantize_static", {"weight_bits": 4, "rounding": "gptq", "correct_bias": "full"}),
    "int4-weights": ("quantize_weights", {"bits": 4, "group": 64}),
}
"""Precision -> the pass that implements it, and its options."""
METHODS = ("output", "minmax", "average", "percentile", "mse", "entropy")
"""Calibration methods: how the range of a value is chosen."""
GROUPS: Mapping[str, str] = {
    "": "",
    "quantization": "compute in low precision",
    "pruning": "remove weights; with calibration data the remaining ones are refitted",
}
"""Group of options -> its purpose."""
Progress = Callable[[str, int, int, str], None]
"""Called during long work with (what, done, count, current item)."""

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
Made = TypeVar("Made")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Option:
    """One option, as the command line and the documentation need it."""

    help: str
    name: str = ""
    type: str = ""
    """As it is annotated."""
    default: object = None
    group: str = ""
    flags: tuple[str, ...] = ()
    """How the command line spells it, the usual spelling first; empty: Python only."""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    least: int = 0
    """The smallest number allowed."""
    read: Callable[[str], object] | None = None
    """Parses a word of the command line into the value, or into one entry of it."""

    @property
    def many(self) -> bool:
        """Whether it has several entries, so that its flag may be repeated."""
        return self.type.startswith(("Sequence", "Mapping"))

    def checked(self, value: object) -> object:
        """A value -> the same, an integer of numpy as Python's. Raises Error for an invalid one."""
        label = self.name.replace("_", " ")
        if self.choices and value not in (*self.choices, self.default):
            hint = f"choose one of {', '.join(self.choices)}"
            raise Error(f"unknown {label} {value!r}", hint=hint)
        if self.type == "Sequence[str]" and isinstance(value, str):
            raise Error(f"{label}: one word {value!r}, not a list", hint=f"[{value!r}]")
        if not _fits(value, self.type):
            raise Error(f"{label}: {value!r} given, {self.type} wanted")
        if self.type != "int":
            return value
        number = int(cast("Any", value))
        if number < self.least:
            raise Error(f"{number} {label}", hint=f"at least {self.least}")
        return number


_KINDS: Mapping[str, Any] = {
    "bool": bool,
    "float": Real,
    "int": Integral,
    "Mapping": Mapping,
    "None": type(None),
    "Path": os.PathLike,
    "Progress": Callable,
    "Sequence": Collection,
    "str": str,
    "tuple": Collection,
}


def _fits(value: object, type: str) -> bool:
    """Whether a value is what an annotation says; what a map holds is not looked at."""
    kinds = {_KINDS.get(t, object) for t in re.sub(r"\[.*\]", "", type).split(" | ")}
    if not isinstance(value, tuple(kinds)):
        return False
    if isinstance(value, bool) and not kinds & {bool, object}:
        return False
    entry = re.search(r"^(?:str \| )?(?:Sequence|tuple)\[(\w+)", type)
    return (
        not entry or isinstance(value, str) or all(_fits(v, entry[1]) for v in cast("Any", value))
    )


def option(
    default: T,
    help: str,
    *,
    group: str = "",
    flags: tuple[str, ...] | None = None,
    metavar: str = "",
    choices: tuple[str, ...] = (),
    least: int = 0,
    read: Callable[[str], object] | None = None,
) -> T:
    """A dataclass field that is an option; `flags` defaults to "--" and its name."""
    about = Option(
        help=help,
        group=group,
        flags=("--",) if flags is None else flags,
        metavar=metavar,
        choices=choices,
        least=least,
        read=read,
    )
    return field(default=default, metadata={"option": about})


def options_of(made: Any) -> tuple[Option, ...]:
    """A dataclass, or an instance of one -> its options, in the order of its fields."""
    found = []
    for f in fields(made):
        if "option" in f.metadata:
            about: Option = f.metadata["option"]
            plain = f"--{f.name.replace('_', '-')}"
            flags = tuple(plain if flag == "--" else flag for flag in about.flags)
            found.append(
                replace(about, name=f.name, type=str(f.type), default=f.default, flags=flags)
            )
    return tuple(found)


def check(made: object) -> None:
    """Raise Error for an option with an invalid value; integers of numpy become Python's."""
    for o in options_of(made):
        object.__setattr__(made, o.name, o.checked(getattr(made, o.name)))


def shape(word: str) -> tuple[str, tuple[int, ...]]:
    """ "x=1x3x224x224" -> ("x", (1, 3, 224, 224)); also accepts commas and brackets."""
    name, equals, text = word.rpartition("=")
    try:
        dims = tuple(int(d) for d in text.strip("[]").replace(",", "x").split("x") if d)
    except ValueError:
        dims = (-1,)
    if not equals or not name or any(d < 0 for d in dims):
        hint = "x=1x3x224x224"
        raise Error(f"{word!r} is not NAME=1x3x224x224", where="--input-shape", hint=hint)
    return name, dims


def dim(word: str) -> tuple[str, str]:
    """ "batch=1..64" -> ("batch", "1..64")."""
    name, equals, text = word.partition("=")
    if not equals or not name or not text:
        raise Error(f"{word!r} is not NAME=LO..HI", where="--dim", hint="batch=1..64")
    return name, text


def opt_dim(word: str) -> tuple[str, int]:
    """ "batch=8" -> ("batch", 8)."""
    name, _, text = word.partition("=")
    if not name or not text.isascii() or not text.isdigit():
        raise Error(f"{word!r} is not NAME=N", where="--opt-dim", hint="batch=8")
    return name, int(text)


@dataclass(frozen=True)
class Options:
    """How to compile. Raises Error for an invalid value."""

    target: str | Sequence[str] = option(
        "host",
        "what to compile for: host, an instruction set or device that `qcompiler targets` lists, or"
        " a .toml or .py file; several, comma-separated (in Python also a list), or all of a family"
        " (x86-64:all) give an artifact with a variant for each",
    )
    input_shapes: Mapping[str, Sequence[int] | Sequence[Sequence[int]] | None] | None = option(
        None,
        "shape of an input that the model leaves open; an open batch size alone defaults to 1; in"
        " Python also the shapes of a sequence's elements, or None for an optional that is absent",
        flags=("--input-shape", "--input-shapes"),
        metavar="NAME=1x3x224x224",
        read=shape,
    )
    dims: Mapping[str, int | str] | None = option(
        None,
        "what a size that inputs leave open may be: batch=1..64 stays open in the artifact (also"
        " batch=1.. without an upper bound), as do seq=1..512 and height=64..512:32, a multiple of"
        " 32; height=224 is pinned",
        flags=("--dim", "--dims"),
        metavar="NAME=LO..HI[:STEP]",
        read=dim,
    )
    opt_dims: Mapping[str, int] | None = option(
        None,
        "number that an open size will be most often, to be fastest at",
        flags=("--opt-dim", "--opt-dims"),
        metavar="NAME=N",
        read=opt_dim,
    )
    threads: int = option(
        0, "threads that the artifact may use; 0: all cores, or one if more would gain little"
    )
    compress: bool = option(
        False,
        "make a small file: weights are entropy-coded; it opens slower, and float convolutions may"
        " run slower",
    )
    passes: Sequence[str] = option(
        (),
        "additional pass to run, or options for a pass; or a Python file of passes",
        flags=("--pass",),
        metavar="NAME{a=b}",
    )
    disabled_passes: Sequence[str] = option(
        (), "pass not to run", flags=("--disabled-pass",), metavar="NAME"
    )
    tuning_records: str | Path = option(
        "",
        "file of what was measured to be fastest, which decides how kernels are made where it can",
        metavar="FILE",
    )
    no_shipped_records: bool = option(
        False,
        "choose by the cost model also where records of what was measured ship with the package",
    )
    precision: str = option(
        "float32",
        "int8 and int4 (int8 with weights of 4 bits) need calibration data; int8-dynamic (matrix"
        " products only), int8-weights and int4-weights (activations stay float32) do not",
        group="quantization",
        choices=tuple(PRECISIONS),
    )
    calibration: object = option(
        None,
        "typical inputs: an .npz or .npy file, a folder, or the word synthetic (random data, to try"
        " the speed; the artifact says so); in Python also an iterable of {input name: array}, or"
        " an onnxruntime CalibrationDataReader",
        group="quantization",
        flags=("--", "--calibration-data-path"),
        metavar="DATA",
    )
    calibration_method: str = option(
        "output",
        "how the range of each value is chosen",
        group="quantization",
        choices=METHODS,
    )
    calibration_samples: int = option(
        300, "use at most this many samples", group="quantization", metavar="N", least=1
    )
    exclude: Sequence[str] = option(
        (),
        "nodes to keep in float: names, regular expressions, or operator types",
        group="quantization",
        flags=("--", "--nodes-to-exclude"),
        metavar="NODES",
    )
    prune: Sequence[str] = option(
        (),
        "what to remove: channels:0.5, magnitude:0.7, second_order:0.7, 2:4, block:0.5 or 16x4:0.5",
        group="pruning",
        metavar="WHAT",
    )
    prune_include: Sequence[str] = option(
        (), "the only nodes to prune", group="pruning", metavar="NODES"
    )
    prune_exclude: Sequence[str] = option(
        (), "nodes not to prune", group="pruning", metavar="NODES"
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Keywords(Options):
    """The keywords of `qcompiler.compile`: how to compile, and a progress callback."""

    progress: Progress | None = option(
        None, "function called with (what, done, all, item) during long work", flags=()
    )


if TYPE_CHECKING:

    class _Takes(Generic[P, Made]):
        """Decorator: options as keywords, after one or two other parameters."""

        @overload
        def __call__(self, f: Callable[[A, Made], Result]) -> Callable[Concatenate[A, P], Result]:
            """After one."""

        @overload
        def __call__(
            self, f: Callable[[A, B, Made], Result]
        ) -> Callable[Concatenate[A, B, P], Result]:
            """After two."""

        def __call__(self, f: Any) -> Any:
            """Decorate."""


def takes(made: Callable[P, Made]) -> _Takes[P, Made]:
    """Decorates a function whose last parameter is `made`, a dataclass of options, so that it takes
    the options as keywords instead.

    Type checkers, `help` and `inspect` see the fields as keywords. An unknown keyword raises Error,
    which names the nearest known one.
    """

    def change(function: Callable[..., Result]) -> Callable[..., Result]:
        *first, last = inspect.signature(function).parameters.values()

        def call(*args: object, **given: Any) -> Result:
            if len(args) > len(first):
                raise TypeError(f"{function.__name__} takes its options as keywords")
            named = {p.name: given.pop(p.name) for p in first if p.name in given}
            _known(given, [o.name for o in options_of(made)])
            return function(*args, **named, **{last.name: cast("Any", made)(**given)})

        keywords = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for p in inspect.signature(made).parameters.values()
        ]
        whole = inspect.signature(function).replace(parameters=(*first, *keywords))
        update_wrapper(call, function).__dict__.update(__signature__=whole)
        call.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{described(made)}"
        return call

    return cast("Any", change)  # type: ignore[no-any-return]


def _known(given: Mapping[str, object], names: Sequence[str]) -> None:
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"the options are {', '.join(names)}"
            raise Error(f"there is no option {name!r}", hint=hint)


def described(made: object) -> str:
    """A dataclass of options -> a paragraph for each, with its name and meaning."""
    lines = []
    for o in options_of(made):
        text = f"{o.name}: {o.help}"
        text += f" (one of {', '.join(o.choices)})" if o.choices else ""
        lines.append(textwrap.fill(text, 96, subsequent_indent="    ", break_on_hyphens=False))
    return "\n".join(lines)


@dataclass
class Watch:
    """Callbacks for a caller who watches a compilation."""

    progress: Progress | None = None
    explain: Explain | None = None
    stage: Callable[[str, Graph], None] | None = None
    """Called with the graph after each stage (--dump)."""
    reasons: dict[str, str] = field(default_factory=dict)
    """A node's name -> the last reason why a rule skipped it, for error messages."""

    def skipped(self, rule: str, node: Node, reason: str) -> None:
        """Record a Skip."""
        self.reasons[node.name] = reason
        if self.explain is not None:
            self.explain(rule, node, reason)

    def saw(self, stage: str, graph: Graph) -> None:
        """Report the graph after a stage."""
        log.info("after %s: %d nodes", stage, len(graph.nodes))
        if self.stage is not None:
            self.stage(stage, graph)

    def only(self, what: str) -> Watch:
        """A watch that reports progress only, all of it as `what`."""
        tell = self.on(what)
        return Watch(None if tell is None else lambda _, done, count, item: tell(done, count, item))

    def on(self, what: str) -> Callable[[int, int, str], None] | None:
        """The progress callback for one kind of work: (done, count, current item)."""
        tell = self.progress
        return None if tell is None else lambda done, count, item: tell(what, done, count, item)
