"""Facts of an exported model -> its C header, and a C++ wrapper."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from qcompiler.artifact.abi import ALIGN
from qcompiler.artifact.artifact import Value
from qcompiler.artifact.manifest import Symbol
from qcompiler.dtypes import numpy_dtype
from qcompiler.emit.c_entry import BAD_SIZE, STATUS
from qcompiler.errors import Error
from qcompiler.export.names import distinct
from qcompiler.export.sizes import arguments, expression
from qcompiler.version import __version__

_TYPES = {
    "float32": "float",
    "float64": "double",
    "float16": "uint16_t",
    "bfloat16": "uint16_t",
    "bool": "uint8_t",
}
"""C types; for dtypes that C lacks, the type of their bits. Others are named as in stdint.h."""


@dataclass(frozen=True)
class Scale:
    """value = scale * (integer - zero_point)."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Facts:
    """The facts in a header: names and sizes; `digest`: SHA-256 of the weights; `threads`: "" for
    none, "callback" or "pthread"; `units`: the most units that threads may share; `scales`: of
    quantized inputs and outputs, where known; `stack_bytes`: the most that a run takes, None where
    that is not known; `symbols`: the sizes that are open.
    """

    name: str
    model: str
    target: str
    needs: Sequence[str]
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    workspace_bytes: int
    weights_bytes: int
    digest: str
    in_file: bool
    threads: str = ""
    units: int = 1
    scales: Mapping[str, Scale] = field(default_factory=dict)
    stack_bytes: int | None = None
    symbols: Sequence[Symbol] = ()

    @property
    def macro(self) -> str:
        """The prefix of macros."""
        return self.name.upper()


def members(values: Sequence[Value]) -> list[str]:
    """Inputs or outputs -> names of the members that hold their addresses, which differ in capitals
    too.
    """
    return distinct(v.name for v in values)


def c_type(value: Value) -> str:
    """The C type of an array's elements."""
    if value.dtype in _TYPES:
        return _TYPES[value.dtype]
    if re.fullmatch(r"u?int(8|16|32|64)", value.dtype):
        return f"{value.dtype}_t"
    if value.dtype.startswith("float8"):
        return "uint8_t"
    raise Error(f"C has no {value.dtype}", where=value.name)


def bytes_of(value: Value) -> int:
    """Size of an input or output."""
    return prod(value.shape) * numpy_dtype(value.dtype).itemsize


def header(facts: Facts) -> str:
    """Facts -> the text of NAME.h."""
    m = facts.macro
    parts = [
        _top(facts),
        f"#ifndef {m}_H\n#define {m}_H\n\n#include <stddef.h>\n#include <stdint.h>\n",
        '#ifdef __cplusplus\nextern "C" {\n#endif\n',
        _sizes(facts),
        *([_ranges(facts)] if facts.symbols else []),
        *(_macros(facts, side, values) for side, values in _sides(facts)),
        _tensor(facts),
        *(_struct(facts, side, values) for side, values in _sides(facts)),
        _function(facts),
        *([_shared(facts)] if facts.threads else []),
        *(_table(facts, side, values) for side, values in _sides(facts)),
        f"#ifdef __cplusplus\n}}\n#endif\n\n#endif /* {m}_H */\n",
    ]
    return "\n".join(parts)


def _sides(facts: Facts) -> list[tuple[str, Sequence[Value]]]:
    return [("input", facts.inputs), ("output", facts.outputs)]


def _macro(facts: Facts, side: str, member: str) -> str:
    return f"{facts.macro}_{side.upper()}_{member.upper()}"


def _comment(text: str) -> str:
    """Text that cannot end a comment."""
    return "".join(c if 32 <= ord(c) < 127 and c not in "*?\\" else "." for c in text)


def _quoted(text: str) -> str:
    made = "".join(
        chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode()
    )
    return f'"{made}"'


def _top(facts: Facts) -> str:
    needs = ", ".join(facts.needs) or "nothing besides its instruction set"
    name, m = facts.name, facts.macro
    return f"""/* {_comment(facts.model)}: made by qcompiler {__version__} for {facts.target}.
 *
 * int {name}_run(inputs, outputs, workspace) runs it once, in the calling thread, in the
 * caller's memory: arrays, and a workspace of {m}_WORKSPACE_BYTES, whose contents need not
 * be kept between runs. All addresses are multiples of {m}_ALIGN. It allocates and keeps
 * nothing, so several threads may run it at once, each with its own workspace.
 * The processor must have: {_comment(needs)}.
 */
"""


def _sizes(facts: Facts) -> str:
    m = facts.macro
    most = "of a run, without functions of C" if facts.stack_bytes is not None else ""
    status = {**STATUS, **({"BAD_SIZE": BAD_SIZE} if facts.symbols else {})}
    lines = [
        f"#define {m}_ALIGN {ALIGN} /* of arrays, the workspace, and weights in a file */",
        f"#define {m}_WORKSPACE_BYTES {facts.workspace_bytes}",
        f"#define {m}_WORKSPACE_ALIGN {ALIGN}",
        *([f"#define {m}_STACK_BYTES {facts.stack_bytes} /* {most} */"] if most else []),
        f"#define {m}_WEIGHTS_BYTES {facts.weights_bytes}",
        f'#define {m}_WEIGHTS_SHA256 "{facts.digest}"',
        f"#define {m}_INPUTS {len(facts.inputs)}",
        f"#define {m}_OUTPUTS {len(facts.outputs)}",
        *([f"#define {m}_UNITS {facts.units}"] if facts.threads else []),
        "",
        *(f"#define {m}_{n} {v} /* {text} */" for n, (v, text) in status.items()),
    ]
    return "\n".join(lines) + "\n"


def _ranges(facts: Facts) -> str:
    """The ranges of open sizes."""
    lines = []
    for symbol, name in zip(facts.symbols, arguments(facts.symbols), strict=True):
        m = f"{facts.macro}_SIZE_{name.upper()}"
        lines += [f"/* open: {_comment(str(symbol))} */"]
        lines += [f"#define {m}_MIN {symbol.low}", f"#define {m}_MAX {symbol.high}"]
        lines += [f"#define {m}_STEP {symbol.step}", ""]
    return "\n".join(lines)


def _macros(facts: Facts, side: str, values: Sequence[Value]) -> str:
    lines = []
    for value, member in zip(values, members(values), strict=True):
        m = _macro(facts, side, member)
        lines += [
            f"/* {side} {_comment(str(value))} */",
            f"#define {m}_NAME {_quoted(value.name)}",
            f'#define {m}_DTYPE "{value.dtype}"',
            f"#define {m}_RANK {len(value.shape)}",
            *(_open_extent(facts, m, value) if value.open else _extent(m, value)),
        ]
        if known := facts.scales.get(value.name):
            lines += [
                f"#define {m}_SCALE {_float(known.scale)}",
                f"#define {m}_ZERO_POINT ({known.zero_point})",
            ]
        lines.append("")
    return "\n".join(lines)


def _extent(m: str, value: Value) -> list[str]:
    dims = ", ".join(map(str, value.shape)) or "1"
    return [
        f"#define {m}_SHAPE {{{dims}}}",
        f"#define {m}_ELEMENTS {prod(value.shape)}",
        f"#define {m}_BYTES {bytes_of(value)}",
    ]


def _open_extent(facts: Facts, m: str, value: Value) -> list[str]:
    """The same as macros of the open sizes."""
    names = arguments(facts.symbols)
    known = dict(zip((s.name for s in facts.symbols), names, strict=True))
    given = ", ".join(names)
    dims = [expression(d, known) for d in value.open]
    item = numpy_dtype(value.dtype).itemsize
    return [
        f"#define {m}_SHAPE({given}) {{{', '.join(dims)}}}",
        f"#define {m}_ELEMENTS({given}) ({' * '.join(dims)})",
        f"#define {m}_BYTES({given}) ({m}_ELEMENTS({given}) * {item})",
    ]


def _float(value: float) -> str:
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _open_note(facts: Facts) -> str:
    return " Sizes that are open are 0 here." if facts.symbols else ""


def _tensor(facts: Facts) -> str:
    return f"""/* An input or output. Quantized integers represent scale * (integer - zero_point);
 * a scale of 0 means that values are not quantized.{_open_note(facts)} */
struct {facts.name}_tensor {{
    const char *name;
    const char *dtype;
    const size_t *shape;
    size_t rank, elements, bytes;
    float scale;
    int zero_point;
}};
"""


def _shape(value: Value) -> str:
    return f"[{', '.join(map(str, value.dims))}]"


def _struct(facts: Facts, side: str, values: Sequence[Value]) -> str:
    const = "const " if side == "input" else ""
    lines = [
        f"    {const}{c_type(v)} *{n}; /* {v.dtype}{_comment(_shape(v))} */"
        for v, n in zip(values, members(values), strict=True)
    ]
    if side == "input" and facts.in_file:
        what = f"the contents of {facts.name}.weights"
        lines.append(f"    const void *weights; /* {what} */")
    lines = lines or ["    char none;"]
    return "\n".join([f"struct {facts.name}_{side}s {{", *lines, "};", ""])


def _function(facts: Facts) -> str:
    n = facts.name
    return (
        f"/* One run; {facts.macro}_OK, or why not. */\n"
        f"int {n}_run(const struct {n}_inputs *inputs, const struct {n}_outputs *outputs,\n"
        f"        void *workspace{_parameters(facts, 'size_t')});\n"
    )


def _parameters(facts: Facts, kind: str) -> str:
    """The open sizes behind other parameters, or, without a type, arguments."""
    return "".join(f", {kind} {name}".replace("  ", " ") for name in arguments(facts.symbols))


def _shared(facts: Facts) -> str:
    n = facts.name
    return f"""/* The caller's threads: parallel_for(pool, units, unit, job) calls unit(job, i) for
 * every i from 0 to units - 1, in any order, on any threads, and returns when all are done. */
struct {n}_threads {{
    void (*parallel_for)(void *pool, int units, void (*unit)(void *job, int i), void *job);
    void *pool;
}};

/* As {n}_run, on these threads, of which {facts.macro}_UNITS have work; the same outputs. */
int {n}_run_threads(const struct {n}_inputs *inputs, const struct {n}_outputs *outputs,
        void *workspace, const struct {n}_threads *threads);
"""


def _table(facts: Facts, side: str, values: Sequence[Value]) -> str:
    n, rows = facts.name, []
    for value, member in zip(values, members(values), strict=True):
        m = _macro(facts, side, member)
        known = value.name in facts.scales
        scale, zero = (f"{m}_SCALE", f"{m}_ZERO_POINT") if known else ("0.0f", "0")
        extent = "0, 0" if value.open else f"{m}_ELEMENTS, {m}_BYTES"
        rows.append(
            f"        {{{m}_NAME, {m}_DTYPE, {member}_shape, {m}_RANK, {extent}, {scale}, {zero}}},"
        )
    shapes = [
        f"    static const size_t {member}_shape[] = {_known_shape(facts, side, member, value)};"
        for value, member in zip(values, members(values), strict=True)
    ]
    lines = [
        f"/* The {side} of index i; null after the last. */",
        f"static inline const struct {n}_tensor *{n}_{side}(size_t i) {{",
        *shapes,
    ]
    if rows:
        lines += [f"    static const struct {n}_tensor table[] = {{", *rows, "    };"]
        lines.append(f"    return i < {len(rows)} ? table + i : NULL;")
    else:
        lines.append("    (void)i;\n    return NULL;")
    return "\n".join([*lines, "}", ""])


def _known_shape(facts: Facts, side: str, member: str, value: Value) -> str:
    """A shape, with 0 for what is open."""
    if not value.open:
        return f"{_macro(facts, side, member)}_SHAPE"
    return f"{{{', '.join(str(d) if isinstance(d, int) else '0' for d in value.open)}}}"


def wrapper(facts: Facts) -> str:
    """Facts -> the text of NAME.hpp: a model that owns its workspace."""
    n, m = facts.name, facts.macro
    return f"""// {n}::Model owns a workspace; one for each thread that runs it.
#pragma once

#include <cstddef>
#include <new>
#include <stdexcept>
#include <utility>

#include "{n}.h"

namespace {n} {{

class Model {{
public:
    Model() : workspace_(::operator new({m}_WORKSPACE_BYTES, align)) {{}}
    ~Model() {{ ::operator delete(workspace_, align); }}
    Model(Model &&other) noexcept : workspace_(std::exchange(other.workspace_, nullptr)) {{}}
    Model &operator=(Model &&other) noexcept {{
        std::swap(workspace_, other.workspace_);
        return *this;
    }}

    // Throws std::invalid_argument for a status other than {m}_OK.
    void run(const {n}_inputs &inputs, const {n}_outputs &outputs{_parameters(facts, "size_t")})
        const {{
        if (::{n}_run(&inputs, &outputs, workspace_{_parameters(facts, "")}) != {m}_OK)
            throw std::invalid_argument("{n}_run: see the {m}_ values in {n}.h");
    }}

private:
    static constexpr std::align_val_t align{{{m}_WORKSPACE_ALIGN}};
    void *workspace_;
}};

}}  // namespace {n}
"""
