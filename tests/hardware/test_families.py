"""Instruction sets of one family, in the order in which a CPU that can run several prefers them."""

from __future__ import annotations

import pytest

from qcompiler import Error, plugins
from qcompiler.hardware import isa
from qcompiler.hardware.isa import ISAS

plugins.load_all()


def test_a_family_is_in_order_of_preference() -> None:
    for name in {i.family for i in ISAS.values()}:
        found = isa.family(name)
        assert {i.name for i in found} == {i.name for i in ISAS.values() if i.family == name}
        places = {i.name: place for place, i in enumerate(found)}
        for one in found:
            assert all(places[base] < places[one.name] for base in one.lineage[1:])


def test_every_instruction_set_has_a_family_and_features() -> None:
    """The features decide which CPUs run it; a GPU is asked for its architecture."""
    for one in ISAS.values():
        assert one.family
        assert one.cpu_flags or one.multiprocessor


def test_several_targets_are_listed_or_a_family() -> None:
    every = [i.name for i in isa.family("x86-64")]
    assert plugins.names("x86-64:all") == every
    assert every[0] == "x86_avx2"
    assert plugins.names("haswell,zen4") == ["haswell", "zen4"]
    assert plugins.names(["haswell", "a,b.toml"]) == ["haswell", "a,b.toml"]
    assert plugins.names(["zen4", "x86-64:all", "x86_avx2"]) == ["zen4", *every]


@pytest.mark.parametrize("name", ["vax:all", ":all", "x86_avx2:all"])
def test_an_unknown_family_is_a_clear_error(name: str) -> None:
    with pytest.raises(Error, match=r"unknown family .*\nhint: one of .*x86-64"):
        plugins.names(name)


def test_what_extends_another_is_preferred_to_it() -> None:
    with pytest.raises(ValueError, match="is not preferred to x86_avx512"):
        isa.isa("worse", extends=ISAS["x86_avx512"], preference=10)
    assert "worse" not in ISAS
