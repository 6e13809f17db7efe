"""An ONNX model, or an artifact -> a folder for C: header, object file, and their memory use.

NAME.h  NAME.hpp  NAME.o  [NAME.weights]  [NAME_pool.h]
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, Union

from qcompiler import plugins
from qcompiler.artifact.abi import ALIGN
from qcompiler.artifact.artifact import Artifact, Bytes, Value, is_artifact, open_artifact
from qcompiler.driver import Compilation
from qcompiler.emit.c_entry import ENTRY, SEAL_BYTES, SHARED, WEIGHTS, Taken, c_entry, seal
from qcompiler.emit.c_open import Open
from qcompiler.emit.native import emit_objects
from qcompiler.emit.parallel import parallel
from qcompiler.errors import Error
from qcompiler.export import cost, stack
from qcompiler.export.elf import ALLOC, EXECUTE, FUNCTION, Elf, read, write
from qcompiler.export.folder import replacing_folder
from qcompiler.export.header import Facts, Scale, bytes_of, header, wrapper
from qcompiler.export.merge import data, merge, names, sized, undefined
from qcompiler.export.names import identifier
from qcompiler.export.pool import pool
from qcompiler.export.request import Exporting
from qcompiler.export.scales import scales
from qcompiler.export.unlink import unlink
from qcompiler.hardware.isa import ISAS, Isa
from qcompiler.options import Watch
from qcompiler.plan.plan import Opened, Plan
from qcompiler.plan.shares import shares
from qcompiler.runtime.text import NOTE

if TYPE_CHECKING:
    import onnx

Source = Union[str, Path, "onnx.ModelProto", Compilation, Artifact]

_MATH = """
    acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf exp exp2 expm1 fabs floor
    fma fmax fmin fmod ldexp log log10 log1p log2 nearbyint pow rint round roundeven sin sinh sqrt
    tan tanh trunc
"""
_LIBM = frozenset(_MATH.split())
ALLOWED = frozenset(("memcpy", "memset", "memmove")) | _LIBM | {f"{name}f" for name in _LIBM}
"""C functions that an object file may call."""


@dataclass(frozen=True)
class Exported:
    """An exported folder, the facts in its header, and its memory use."""

    folder: Path
    facts: Facts
    cost: cost.Cost


@dataclass(frozen=True)
class _Model:
    """A model's machine code and facts, made from an ONNX model or an artifact."""

    source: str
    isa: Isa
    target: str
    objects: tuple[Elf, ...]
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    steps: int
    workspace_bytes: int
    weights: Bytes
    scales: Mapping[str, Scale]
    plan: Plan | None
    known: Sequence[cost.Known]
    """What is known of each step."""
    opened: Open | None = None


def export_c(
    model: Source,
    folder: str | Path,
    options: Exporting | None = None,
    watch: Watch | None = None,
) -> Exported:
    """A model and how to compile it, a compilation, or an artifact -> a folder. Raises Error for a
    wrong model or option, where a budget is exceeded, and where the folder exists already.
    """
    folder, options = Path(folder), options or Exporting()
    with replacing_folder(folder, force=options.force) as place:
        made = _made(model, options, watch or Watch())
        name = identifier(options.name or _stem(model))
        facts = _facts(made, name, options)
        file = _merged(made, facts)
        facts = replace(facts, stack_bytes=stack.most(file, {s.kernel for s in made.known}))
        found = _cost(made, facts, file)
        cost.demand(found, options.ram, options.flash)
        (place / f"{name}.h").write_text(header(facts))
        (place / f"{name}.hpp").write_text(wrapper(facts))
        (place / f"{name}.o").write_bytes(write(file))
        if facts.in_file:
            end = seal(facts.digest).to_bytes(8, "little").ljust(SEAL_BYTES, b"\0")
            (place / f"{name}.weights").write_bytes(made.weights.tobytes() + end)
        if facts.threads == "pthread":
            (place / f"{name}_pool.h").write_text(pool(name))
    return Exported(folder, facts, found)


def _stem(model: Source) -> str:
    model = model.model if isinstance(model, Compilation) else model
    return Path(model).stem if isinstance(model, (str, Path)) else "model"


def _made(model: Source, options: Exporting, watch: Watch) -> _Model:
    if isinstance(model, Compilation):
        return _of_model(model)
    if options.parallel and (isinstance(model, Artifact) or _is_file_of_one(model)):
        raise Error("an artifact is exported for one thread", hint="export the model itself")
    if isinstance(model, Artifact):
        return _of_artifact(model, model.manifest.name, options.variant)
    if _is_file_of_one(model):
        return _of_artifact(open_artifact(model), str(model), options.variant)
    if options.parallel and options.dims and any(".." in str(d) for d in options.dims.values()):
        raise Error("of open sizes, the export is for one thread", hint="leave out --parallel")
    options = options if options.parallel else replace(options, threads=1)
    return _of_model(Compilation(model, options, watch))


def _is_file_of_one(model: Source) -> TypeGuard[str | Path]:
    return isinstance(model, (str, Path)) and is_artifact(model)


def _of_model(made: Compilation) -> _Model:
    plan, model, opened = made.plan, made.model, made.plan.opened
    graph, isa = plan.graph, plan.device.isa
    _demand_unchecked([*graph.checks, *graph.extents], graph.name)
    _demand_no_text(graph.notes, graph.name)
    inputs, outputs = plan.sides
    return _Model(
        source=str(Path(model).name) if isinstance(model, (str, Path)) else graph.name,
        isa=isa,
        target=plan.device.name if plan.device.name != "host" else isa.name,
        objects=tuple(read(code) for code in emit_objects(plan)),
        inputs=inputs,
        outputs=outputs,
        steps=len(plan.steps),
        workspace_bytes=plan.workspace_bytes,
        weights=plan.weights,
        scales=scales(made.quantized),
        plan=plan,
        known=[
            cost.Known(s.name, s.kernel.name, share.ram, share.weights)
            for s, share in zip(plan.steps, shares(plan), strict=True)
        ],
        opened=_open(opened, plan.workspace_bytes, inputs, outputs) if opened else None,
    )


def _open(opened: Opened, offset: int, inputs: Sequence[Value], outputs: Sequence[Value]) -> Open:
    """A plan's open sizes, as C code reads them."""
    steps = opened.batches, opened.pinned
    return Open(opened.symbols, inputs, outputs, *steps, opened.sizes, offset)


def _of_artifact(made: Artifact, source: str, wanted: str) -> _Model:
    manifest = made.manifest
    plugins.load_all()
    variants = manifest.variants
    found = [i for i, v in enumerate(variants) if wanted in ("", v.isa)]
    if len(found) != 1:
        what = f"there is no variant {wanted!r}" if wanted else "it has several variants"
        known = ", ".join(v.isa for v in variants)
        raise Error(what, where=source, hint=f"--variant, one of {known}")
    facts, binary = variants[found[0]], made.binaries[found[0]]
    if facts.isa not in ISAS:
        raise Error(f"this version knows no instruction set {facts.isa!r}", where=source)
    if ISAS[facts.isa].multiprocessor is not None:
        raise Error(f"{facts.isa} is a GPU, and C code is for CPUs", where=source)
    unchecked = [*(c.what for c in facts.checks), *(name for name, _ in facts.extents)]
    _demand_unchecked(unchecked, source)
    _demand_no_text(manifest.notes, source)
    return _Model(
        source=Path(source).name,
        isa=ISAS[facts.isa],
        target=facts.isa,
        objects=(unlink(binary.code),),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        steps=len(facts.steps),
        workspace_bytes=facts.workspace_bytes,
        weights=binary.weights,
        scales={},
        plan=None,
        known=[cost.Known(s.name, s.kernel, s.ram, s.weights) for s in facts.steps],
        opened=Open(
            manifest.symbols,
            manifest.inputs,
            manifest.outputs,
            facts.batches,
            facts.pinned,
            manifest.sizes,
            facts.workspace_bytes,
        )
        if manifest.symbols
        else None,
    )


def _demand_unchecked(checks: Collection[str], source: str) -> None:
    """Raise Error for a model whose runs must be checked, which C code would not do."""
    if checks:
        what = "a run must check sizes that operands or data decide, which code for C does not: "
        hint = "make these operands constants (initializers) of the model"
        raise Error(what + next(iter(checks)), where=source, hint=hint)


def _demand_no_text(notes: Mapping[str, str], source: str) -> None:
    """Raise Error for a model that has strings, which Python handles."""
    if NOTE in notes:
        hint = "cut the operators on strings off the model"
        raise Error("operators on strings run in Python only", where=source, hint=hint)


def _facts(made: _Model, name: str, options: Exporting) -> Facts:
    return Facts(
        name=name,
        model=made.source,
        target=made.target,
        needs=sorted(made.isa.cpu_flags),
        inputs=made.inputs,
        outputs=made.outputs,
        workspace_bytes=max(_workspace(made), ALIGN),
        weights_bytes=made.weights.nbytes,
        digest=hashlib.sha256(made.weights.data).hexdigest(),
        in_file=options.weights == "file",
        threads=options.parallel,
        units=max((s.kernel.tasks for s in made.plan.steps), default=1) if made.plan else 1,
        scales=made.scales,
        symbols=made.opened.symbols if made.opened else (),
    )


def _workspace(made: _Model) -> int:
    """Bytes of the workspace, with what a run of open sizes needs."""
    return made.opened.workspace_bytes if made.opened else made.workspace_bytes


def _merged(made: _Model, facts: Facts) -> Elf:
    """Everything in one object file that exports only NAME_run, and NAME_run_threads if wanted."""
    file = (facts.weights_bytes, seal(facts.digest)) if facts.in_file else None
    taken = Taken(
        len(made.inputs),
        len(made.outputs),
        made.steps,
        file,
        bool(facts.threads),
        made.opened,
        made.objects[0].bits,
    )
    parts = [*made.objects, read(c_entry(taken, made.isa))]
    if facts.threads and made.plan is not None:
        parts.append(read(parallel(made.plan)))
    if not facts.in_file:
        content = made.weights.tobytes() or bytes(ALIGN)
        parts.append(data(WEIGHTS, f".rodata.{facts.name}", content, ALIGN, parts[0]))
    whole = merge(parts, {ENTRY: f"{facts.name}_run", SHARED: f"{facts.name}_run_threads"})
    if wrong := sorted(undefined(whole) - ALLOWED):
        raise Error(
            f"its code calls {', '.join(wrong)}, which C does not have",
            where=facts.target,
            hint="choose another target, or another precision",
        )
    return whole


def _largest(made: _Model) -> list[Value]:
    """The inputs and outputs; of open sizes those of one sample, of the largest sizes."""
    values, opened = [*made.inputs, *made.outputs], made.opened
    return [replace(v, shape=opened.largest(v)) for v in values] if opened else values


def _cost(made: _Model, facts: Facts, file: Elf) -> cost.Cost:
    stored = 0 if facts.in_file else facts.weights_bytes
    return cost.Cost(
        workspace=facts.workspace_bytes,
        arrays=sum(map(bytes_of, _largest(made))),
        code=sized(file, ALLOC | EXECUTE) + sized(file, ALLOC) - stored,
        weights=facts.weights_bytes,
        in_file=facts.in_file,
        layers=cost.layers(made.known, names(file, {FUNCTION})),
        stack=facts.stack_bytes,
    )
