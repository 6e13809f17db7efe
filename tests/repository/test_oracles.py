"""Other engines may refuse whatever they like; what they answer counts."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import oracles
import pytest

ENGINES = {"onnxruntime", "nncf", "onnx.reference"}
"""What only these import: one for all tests, and one that tells refusals from answers itself."""
CALLERS = {"oracles.py", "differential/checks.py"}
MODEL = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["": 17]>
    doubled (float[3] x) => (float[3] y) { y = Add(x, x) }
""")
FEED = {"x": np.ones(3, np.float32)}


def engine(monkeypatch: pytest.MonkeyPatch, load: object, run: object) -> None:
    """An onnxruntime that raises what it is given, when it loads a model or runs one."""

    def act(what: object) -> object:
        if isinstance(what, Exception):
            raise what
        return what

    made = SimpleNamespace(
        get_outputs=lambda: [SimpleNamespace(name="y")], run=lambda names, feed: act(run)
    )
    fake = ModuleType("onnxruntime")
    options = SimpleNamespace(add_session_config_entry=lambda key, value: None)
    fake.SessionOptions = lambda: options  # type: ignore[attr-defined]
    fake.InferenceSession = lambda *a, **k: act(load) or made  # type: ignore[attr-defined]
    monkeypatch.setattr(oracles, "peer", lambda name: fake)


@pytest.mark.parametrize("raised", [RuntimeError("no kernel"), ValueError(), MemoryError("full")])
def test_a_refusal_is_a_skip_with_its_reason(
    raised: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    for load, run in ((raised, None), (None, raised)):
        engine(monkeypatch, load, run)
        with pytest.raises(pytest.skip.Exception, match=f"{type(raised).__name__}: {raised}"):
            oracles.onnxruntime_outputs(MODEL, FEED)


def test_an_answer_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    engine(monkeypatch, None, [np.full(3, 7.0)])
    assert oracles.onnxruntime_outputs(MODEL, FEED)["y"].tolist() == [7, 7, 7]


def test_a_model_of_ours_that_onnx_refuses_is_our_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    engine(monkeypatch, RuntimeError("invalid graph"), None)
    broken = onnx.ModelProto()
    broken.CopyFrom(MODEL)
    broken.graph.node[0].input[1] = "absent"
    with pytest.raises(onnx.checker.ValidationError):
        oracles.onnxruntime_outputs(broken, FEED, ours=True)


def test_an_engine_that_is_absent_or_breaks_is_a_skip() -> None:
    with pytest.raises(pytest.skip.Exception, match="ModuleNotFoundError"):
        oracles.peer("an_engine_that_nobody_wrote")


def test_other_engines_are_called_in_one_place() -> None:
    tests = Path(__file__).parents[1]
    found = []
    for path in tests.rglob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
            elif isinstance(node, ast.Import):
                names.update(a.name for a in node.names)
        used = {e for e in ENGINES for n in names if n == e or n.startswith(f"{e}.")}
        if used and str(path.relative_to(tests)) not in CALLERS:
            found.append(f"{path.relative_to(tests)}: {', '.join(sorted(used))}")
    assert found == [], "use tests/oracles.py"
