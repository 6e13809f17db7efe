"""The innermost loops of products for each ARM core that docs/targets.md lists; compiled only."""

from __future__ import annotations

import pytest

from benchmarks.arm_loops import LAYERS, PRECISIONS, SCALAR, assembly, hottest


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("device", "precision"), [(d, p) for d, found in PRECISIONS.items() for p in found]
)
def test_no_loop_spills_or_multiplies_single_elements(
    device: str, precision: str, layer: str
) -> None:
    _, text = assembly(device, precision, layer)
    loop = hottest(text)
    assert loop is not None
    assert not loop.spills
    assert not any(SCALAR.search(line) for line in loop.lines)
