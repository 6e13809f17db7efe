"""Artifact -> an executor: requests from anywhere, answered once each, with every core busy."""

from qcompiler.runtime.executor.errors import Closed, Full, Late, WorkerLost
from qcompiler.runtime.executor.executor import Executor
from qcompiler.runtime.executor.pool import Pool
from qcompiler.runtime.executor.requests import Future

__all__ = ["Closed", "Executor", "Full", "Future", "Late", "Pool", "WorkerLost"]
