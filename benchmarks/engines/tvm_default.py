"""TVM's own importer and default build: no schedules, no tuning; so slow that one has to ask."""

from __future__ import annotations

from pathlib import Path

from benchmarks.engines import Job, Run, Settings, engine
from benchmarks.subjects import Array, Feed


def load(artifact: Path, settings: Settings) -> Run:
    """A shared library -> its virtual machine."""
    import tvm
    from tvm.relax import VirtualMachine

    machine = VirtualMachine(tvm.runtime.load_module(str(artifact)), tvm.cpu())
    order = (artifact.parent / "inputs.txt").read_text().split()
    names = (artifact.parent / "outputs.txt").read_text().split()

    def run(feed: Feed) -> dict[str, Array]:
        results = machine["main"](*(tvm.runtime.tensor(feed[name]) for name in order))
        several = list(results) if len(names) > 1 else [results]
        return {name: value.numpy() for name, value in zip(names, several, strict=True)}

    return run


@engine("tvm", "float32", load=load, slow=True)
def build(job: Job) -> Path:
    """Import the model, compile it for this CPU, link it."""
    import onnx
    import tvm
    from tvm.relax.frontend.onnx import from_onnx

    model = onnx.load(job.subject.model)
    module = from_onnx(model, shape_dict={k: list(v) for k, v in job.subject.shapes().items()})
    target = tvm.target.Target({"kind": "llvm", "mcpu": "native"})
    made = job.folder / "tvm.so"
    tvm.compile(module, target).export_library(str(made))
    (job.folder / "inputs.txt").write_text("\n".join(job.subject.shapes()))
    (job.folder / "outputs.txt").write_text("\n".join(o.name for o in model.graph.output))
    return made
