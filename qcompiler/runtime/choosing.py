"""An artifact's variants -> those that this machine can run, the best first."""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.artifact.artifact import Manifest, Variant
from qcompiler.errors import Error
from qcompiler.hardware import cpu

_HINT = "compile it here, or for an older instruction set: `qcompiler targets`"


def fitting(manifest: Manifest, wanted: str = "") -> list[int]:
    """The numbers of the variants whose architecture and features this CPU has, the most preferred
    first; only the variant named `wanted`, if given. Raises Error where there is none.

    Whether the system also grants the registers that code must ask for shows when it is loaded
    (library.Refused).
    """
    variants = {i: v for i, v in enumerate(manifest.variants) if wanted in ("", v.isa)}
    if not variants:
        known = ", ".join(v.isa for v in manifest.variants)
        raise Error(f"there is no variant {wanted!r}", where=manifest.name, hint=f"one of {known}")
    whose = f"the variant {wanted}" if wanted else "the artifact"
    variants = _of_this_machine(manifest, variants, whose)
    have = cpu.features()
    if not have and any(v.cpu_flags for v in variants.values()):
        raise Error(
            "the system does not say what its CPU has, so the artifact cannot be run safely",
            where=manifest.name,
            hint="is /proc/cpuinfo there, and can it be read?",
        )
    found = [i for i, v in variants.items() if have.issuperset(v.cpu_flags)]
    if found:
        return found[::-1]
    if len(variants) > 1:
        raise _none_fits(manifest, variants, have)
    (only,) = variants.values()
    missing = ", ".join(sorted(set(only.cpu_flags) - have))
    raise Error(f"this CPU lacks {missing}, which {whose} needs", where=manifest.name, hint=_HINT)


def lacking(variant: Variant) -> str:
    """What a variant needs and this machine lacks; empty where it lacks nothing."""
    machine = cpu.machine()
    if machine not in ("", _machine(variant)):
        return _machine(variant)
    return " ".join(sorted(set(variant.cpu_flags) - cpu.features()))


def _machine(variant: Variant) -> str:
    """The architecture that a variant is for."""
    return variant.triple.partition("-")[0]


def _of_this_machine(
    manifest: Manifest, variants: Mapping[int, Variant], whose: str
) -> dict[int, Variant]:
    """The variants for this architecture; all of them where it is not known."""
    machine = cpu.machine()
    found = {i: v for i, v in variants.items() if machine in ("", _machine(v))}
    if found:
        return found
    others = " and ".join(dict.fromkeys(map(_machine, variants.values())))
    hint = "compile it for this machine, or copy it to one that it is for"
    if others.startswith("nvptx"):
        hint = 'a GPU of this machine runs it: load(..., device="cuda"), or --device cuda'
    raise Error(
        f"{whose} is for {others}, this machine is {machine}",
        where=manifest.name,
        hint=hint,
    )


def _none_fits(manifest: Manifest, variants: Mapping[int, Variant], have: frozenset[str]) -> Error:
    """The Error that says what each variant needs, and what of that this CPU has."""
    needs = "; ".join(f"{v.isa} needs {' '.join(sorted(v.cpu_flags))}" for v in variants.values())
    every = {flag for v in variants.values() for flag in v.cpu_flags}
    has = " ".join(sorted(every & have)) or "nothing"
    return Error(
        f"this CPU can run none of the artifact's variants: {needs}; of these it has {has}",
        where=manifest.name,
        hint=_HINT,
    )
