"""NaN in what a model reads is NaN in what it makes, also where a board compares vectors otherwise
than IEEE 754 does.
"""

from __future__ import annotations

from pathlib import Path

import machines
import numpy as np
import pytest

from qcompiler.driver import Compilation
from qcompiler.export.c import export_c
from qcompiler.export.request import Exporting
from qcompiler.ops import evaluate
from qcompiler.options import Options
from tests.rewrite.test_padding import model_of

MODELS = {
    "bounds": "y0 = Relu(x) y1 = Max(x, c) y2 = Min(x, c)",
    "functions": "y0 = Exp(x) y1 = HardSigmoid(x) y2 = Sign(x)",
    "comparisons": """l = Less(x, c) y0 = Cast<to=1>(l) g = GreaterOrEqual(x, c) y1 = Cast<to=1>(g)
        e = Greater(c, x) y2 = Where(e, c, x)""",
}
VALUES = np.array([np.nan, -np.inf, np.inf, -1, 1, 0.5, -0.5, -2, 3, np.nan, 8], np.float32)


@pytest.mark.parametrize("text", MODELS.values(), ids=list(MODELS))
@pytest.mark.parametrize("name", ["cortex-m4", "cortex-m55"])
def test_what_is_no_number_stays_none(name: str, text: str, tmp_path: Path) -> None:
    machine = machines.MACHINES[name]
    machines.demand(machine)
    model = model_of(
        "g (float[11] x) => (float[11] y0, float[11] y1, float[11] y2) <float c = {-1.0}> {"
        f"{text} }}",
        21,
    )
    made = Compilation(model, Options(target=machine.target, threads=1))
    facts = export_c(made, tmp_path / "net", Exporting(name="net")).facts
    (got,) = machines.run(machine, facts, tmp_path / "net", [{"x": VALUES}])
    with np.errstate(all="ignore"):
        want = evaluate(made.lowered, {"x": VALUES})
    for key, array in want.items():
        np.testing.assert_allclose(got[key], array, rtol=1e-6, err_msg=key)
