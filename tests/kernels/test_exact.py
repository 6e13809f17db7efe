"""A whole int8 network gives bit for bit what its graph means in numpy, on every instruction set.

Those that this CPU lacks run through the emulator of tests/emulator.
"""

import numpy as np
import pytest
from emulator import load_or_skip

from qcompiler import load, plugins
from qcompiler.demo import DATA, MODEL
from qcompiler.driver import Compilation
from qcompiler.emit.assemble import assemble
from qcompiler.hardware import cpu
from qcompiler.hardware.isa import ISAS
from qcompiler.ops import evaluate
from qcompiler.options import Options

plugins.load_all()
SETS = sorted(n for n, i in ISAS.items() if i.triple.startswith("x86_64"))
IMAGES = 5


@pytest.fixture(params=SETS)
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An instruction set that code can be run for here: the CPU's own, or emulated."""
    missing = ISAS[request.param].cpu_flags - cpu.features()
    if missing:
        load_or_skip(missing)
        have = cpu.features() | missing
        monkeypatch.setattr(cpu, "features", lambda: have)
    return str(request.param)


def test_an_int8_network_is_exact(target: str) -> None:
    with np.load(DATA, allow_pickle=False) as digits:
        images = digits["test_images"][:IMAGES]
        calibration = [{"image": i[None]} for i in digits["calibration"][:16]]
    options = Options(
        target=target,
        precision="int8",
        calibration=calibration,
        input_shapes={"image": (1, 1, 8, 8)},
        threads=2,
    )
    made = Compilation(MODEL, options).plan
    model = load(assemble(made))
    integers = [n for n in made.graph.nodes if n.op in ("conv", "matmul")]
    assert all(n.dtype == "int32" for n in integers), "a product was left in float"
    for image in images:
        want = evaluate(made.graph, {"image": image[None]})["scores"]
        assert np.array_equal(model(image[None]), want)
