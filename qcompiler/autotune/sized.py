"""A model whose batch is open -> compilations of a fixed number of samples, one for each graph that
its plan runs: their regions, threads and so records are those of that plan.
"""

from __future__ import annotations

from dataclasses import replace

from qcompiler.driver import Compilation
from qcompiler.hardware.isa import Device
from qcompiler.ir import Graph
from qcompiler.plan.open_plan import fixed
from qcompiler.plan.plan import Plan
from qcompiler.tune.records import Measured, joined_records


class Sized(Compilation):
    """One of them."""

    def planned(self, more: Measured | None = None) -> Plan:
        """As a part of the plan of the open batch, which runs no part of a batch by itself."""
        records = joined_records(self.records, more)
        tell, reasons = self.watch.on("choosing kernels"), self.watch.reasons
        return fixed(self.lowered, self.device, tell, reasons, records)


def sized(made: Compilation) -> list[Compilation]:
    """A compilation without records -> those of each size; of a fixed batch it is the only one."""
    if made.opened is None or made.opened.inner or made.plan.opened is None:
        return [made]
    graphs, device = dict(made.sized(made.opened.symbol)), made.plan.device
    sizes = [b.samples for b in made.plan.opened.batches]
    return [_of(made, graphs[samples], samples, device) for samples in sizes]


def _of(made: Compilation, graph: Graph, samples: int, device: Device) -> Compilation:
    one = Sized(made.model, replace(made.options, threads=device.threads), made.watch)
    shared = {"float_graph": made.float_graph, "opened": None, "records": made.records}
    named = replace(graph, name=f"{graph.name}, {samples} sample{'s' * (samples > 1)}")
    vars(one).update({**shared, "device": device, "lowered": named})
    return one
