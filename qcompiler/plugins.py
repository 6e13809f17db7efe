"""Loads every pass, target and kernel generator by name; each registers itself on import.

No other module knows that passes/ and targets/ exist.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import qcompiler
from qcompiler.errors import Error
from qcompiler.files import contents
from qcompiler.hardware.core import Core
from qcompiler.hardware.cpu import features
from qcompiler.hardware.gpu import Gpu
from qcompiler.hardware.isa import ISAS, Cpu, Device, Isa, family, host, on_host

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_CLONE = Path(__file__).resolve().parents[1]
if (_CLONE / "targets" / "devices").is_dir() and str(_CLONE) not in qcompiler.__path__:
    # Python run in a clone imports the folder that it stands in, whatever is installed; passes/ and
    # targets/, which packages have inside, are beside it there.
    qcompiler.__path__.append(str(_CLONE))

EVERY = ":all"
"""Behind a family's name: all its instruction sets."""


def load_all() -> None:
    """Import every pass, instruction set and kernel generator; once per process."""
    load_passes()
    _load("qcompiler.targets")
    _load("qcompiler.kernels")


def load_passes() -> None:
    """Import every pass, once per process; passes need no code generator."""
    _load("qcompiler.passes")


@cache
def _load(package: str) -> None:
    folder = importlib.import_module(package)
    inside = pkgutil.walk_packages(folder.__path__, f"{package}.")
    for module in sorted(m.name for m in inside):
        importlib.import_module(module)


def load_file(path: Path) -> ModuleType:
    """A user's own pass, instruction set or metric (`--pass ./mine.py`, `--target ./mine.py`) ->
    the module, registered. Any exception it raises becomes an Error.
    """
    if not path.is_file():
        raise Error("no such file", where=str(path))
    name = f"qcompiler_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Error("not a Python file", where=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Error:
        raise
    except (Exception, SystemExit) as e:
        del sys.modules[name]
        raise broken(e, path) from e
    return module


def broken(error: BaseException, path: Path | str) -> Error:
    """An exception from a user's own code -> a one-line Error."""
    message = " ".join(str(error).split())
    return Error(f"it raised {type(error).__name__}{message and f': {message}'}", where=str(path))


def device(target: str, threads: int = 0) -> Device:
    """A target's name -> the device to compile for.

    "host" (this machine, with the facts of the core of the device that its features tell); an
    instruction set's name (this machine restricted to it); a device's name (a TOML file in
    targets/devices); or the path of a user's own .toml device or .py instruction set.
    """
    load_all()
    if target == "host":
        return _recognized(host(threads))
    if target.endswith(".py"):
        before = set(ISAS)
        load_file(Path(target))
        new = [i for name, i in ISAS.items() if name not in before]
        if not new:
            raise Error("no instruction set is registered here", where=target)
        return _recognized(on_host(new[-1], threads))
    if target.endswith(".toml"):
        return _read_device(Path(target), threads)
    files = devices()
    if target in ISAS and ISAS[target].multiprocessor is None:
        return _recognized(on_host(ISAS[target], threads))
    if target in ISAS:
        return _gpu_of(ISAS[target])
    if target in files:
        return _read_device(files[target], threads)
    near = " or ".join(get_close_matches(target, ["host", *ISAS, *files]))
    others = f"`qcompiler targets` lists them; or a .toml or .py file, a,b or FAMILY{EVERY}"
    raise Error(
        f"unknown target {target!r}", hint=f"did you mean {near}? {others}" if near else others
    )


def names(target: str | Sequence[str], makes: Callable[[Isa], bool] | None = None) -> list[str]:
    """What may be several targets -> the name of each: "haswell,zen4", a sequence of names, and
    "FAMILY:all", which is every instruction set of a family that `makes` says code can be made for
    (left out: every one), the most preferred last.
    """
    load_all()
    given = target.split(",") if isinstance(target, str) else target
    found: list[str] = []
    for name in given:
        every = name.endswith(EVERY)
        isas = family(name.removesuffix(EVERY)) if every else []
        found += [i.name for i in isas if makes is None or makes(i)] if every else [name]
    if not found:
        raise Error("no target is named", where="--target", hint="host is this machine")
    return list(dict.fromkeys(found))


def targeted(
    target: str | Sequence[str], threads: int, makes: Callable[[Isa], bool]
) -> dict[str, Device]:
    """What may be several targets (as in `names`) -> the device of each name, the most preferred
    of a family last. Raises Error for two between which nobody could choose.
    """
    found = {name: device(name, threads) for name in names(target, makes)}
    order = sorted(found, key=lambda n: (found[n].isa.family, found[n].isa.preference))
    for i, name in enumerate(order):
        same = [other for other in order[:i] if found[other].isa.name == found[name].isa.name]
        if same:
            raise Error(
                f"{same[0]} and {name} are both {found[name].isa.name}: nothing that a CPU reports"
                " tells them apart",
                where="--target",
                hint="name one of them",
            )
    return {name: found[name] for name in order}


def only_device(target: str | Sequence[str], threads: int, makes: Callable[[Isa], bool]) -> Device:
    """The device of what must be one target."""
    found = names(target, makes)
    if len(found) > 1:
        raise Error(
            f"one target is wanted, these are {len(found)}: {', '.join(found)}",
            where="--target",
            hint="several can be compiled for, without --max-drop and --report",
        )
    return device(found[0], threads)


def devices() -> dict[str, Path]:
    """Device name -> its TOML file, for every installed device."""
    folder = importlib.import_module("qcompiler.targets.devices")
    return {p.stem: p for root in folder.__path__ for p in sorted(Path(root).glob("*.toml"))}


def _recognized(here: Cpu) -> Cpu:
    """This machine, with the facts of the core of the installed device that it is, if of any."""
    have = features()
    for isa, has, lacks, core in _known_cores():
        if here.isa.name == isa and have >= has and have.isdisjoint(lacks):
            return replace(here, core=core)
    return here


@cache
def _known_cores() -> Sequence[tuple[str, frozenset[str], frozenset[str], Core]]:
    """Of each installed device that can be recognized: its instruction set, features that a machine
    has and lacks then, and the facts of its core, which are about whole vectors.
    """
    found = []
    for path in devices().values():
        facts = _facts(path)
        if _HOST in facts:
            found.append((facts["isa"], *_host_features(facts, path), _core(facts, path)))
    return found


def _gpu_of(isa: Isa) -> Gpu:
    """The first installed GPU of an architecture, as all have its code."""
    for path in devices().values():
        if f'isa = "{isa.name}"' in path.read_text(encoding="utf-8"):
            found = _read_device(path, 0)
            assert isinstance(found, Gpu)
            return replace(found, name=isa.name)
    raise Error(f"no GPU of {isa.name} is known", hint="give a .toml file of one's facts")


_GPU_FIELDS = {
    "multiprocessors": int,
    "hz": float,
    "memory_bytes_per_second": float,
    "l2_bytes": int,
    "macs_per_cycle": dict,
}
_DEVICE_FIELDS = {"isa": str, "threads": int, "l1_bytes": int, "l2_bytes": int, "l3_bytes": int}
_LLVM = "llvm"
"""What else LLVM is told of a device: its name for the core, and features, as an instruction set's
are said.
"""


_HOST = "host"
"""How a machine is recognized as the device: a table of two strings, the features that it `has` and
those that it `lacks`, as the system calls them.
"""


def _facts(path: Path) -> dict[str, Any]:
    """A TOML file of facts, without the words for people."""
    try:
        facts = tomllib.loads(contents(path).decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise Error(f"cannot read the device: {e}", where=str(path)) from e
    return {k: v for k, v in facts.items() if k not in ("description", "source")}


def _core(facts: Mapping[str, Any], path: Path) -> Core:
    """The facts of a device's core."""
    given = facts.get("core", {})
    if not isinstance(given, dict):
        raise Error("core is not a table of facts", where=str(path))
    try:
        return Core.of(given)
    except Error as e:
        raise Error(e.what, where=str(path), hint=e.hint) from e


def _host_features(facts: Mapping[str, Any], path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """The features that a machine has, and those that it lacks, if it is the device."""
    given = facts[_HOST]
    if not isinstance(given, dict) or not given.keys() <= {"has", "lacks"} or "has" not in given:
        raise Error(f"{_HOST} is not a table of what it has and lacks", where=str(path))
    if not all(isinstance(words, str) for words in given.values()):
        raise Error(f"{_HOST} holds what is not words", where=str(path))
    return frozenset(given["has"].split()), frozenset(given.get("lacks", "").split())


def _read_device(path: Path, threads: int) -> Device:
    """A TOML file of facts -> the device."""
    facts = _facts(path)
    if "gpu" in facts:
        return _read_gpu(path, facts)
    core = _core(facts, path)
    for key, kind in _DEVICE_FIELDS.items():
        if not isinstance(facts.get(key), kind) or isinstance(facts[key], bool):
            raise Error(f"{key} is missing or not {kind.__name__}", where=str(path))
    unknown = sorted(set(facts) - {*_DEVICE_FIELDS, "core", _LLVM, _HOST})
    if unknown:
        raise Error(f"unknown fact {unknown[0]!r}", where=str(path))
    if _HOST in facts:
        _host_features(facts, path)
    words = facts.get(_LLVM, "")
    if not isinstance(words, str):
        raise Error(f"{_LLVM} is not words", where=str(path))
    known = _known_isa(facts["isa"], path)
    if words:
        known = replace(known, llvm=(*known.llvm, *words.split()))
    return Cpu(
        name=path.stem,
        isa=known,
        threads=threads or facts["threads"],
        l1_bytes=facts["l1_bytes"],
        l2_bytes=facts["l2_bytes"],
        l3_bytes=facts["l3_bytes"],
        core=core,
    )


def _known_isa(name: object, path: Path) -> Isa:
    if name not in ISAS:
        raise Error(
            f"unknown instruction set {name!r}",
            where=str(path),
            hint=f"one of {', '.join(ISAS)}",
        )
    return ISAS[str(name)]


def _read_gpu(path: Path, facts: Mapping[str, Any]) -> Gpu:
    """The facts of a GPU's file -> the device."""
    if unknown := sorted(set(facts) - {"isa", "gpu"}):
        raise Error(f"unknown fact {unknown[0]!r}", where=str(path))
    isa, given = _known_isa(facts.get("isa"), path), facts["gpu"]
    if isa.multiprocessor is None or not isinstance(given, dict):
        raise Error(f"{isa.name} is no GPU's, or gpu no table of facts", where=str(path))
    for key, kind in _GPU_FIELDS.items():
        if not isinstance(given.get(key), kind) or isinstance(given[key], bool):
            raise Error(f"gpu.{key} is missing or not {kind.__name__}", where=str(path))
    if unknown := sorted(set(given) - set(_GPU_FIELDS)):
        raise Error(f"unknown fact gpu.{unknown[0]}", where=str(path))
    rates = given["macs_per_cycle"]
    if "f32" not in rates or any(type(r) is not int or r < 1 for r in rates.values()):
        raise Error("gpu.macs_per_cycle has no f32, or a rate below 1", where=str(path))
    if min(v for k, v in given.items() if k != "macs_per_cycle") <= 0:
        raise Error("a fact of the GPU is not above 0", where=str(path))
    return Gpu(name=path.stem, isa=isa, **given)
