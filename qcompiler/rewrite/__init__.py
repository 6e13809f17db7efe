"""Rewrite rules and passes over graphs."""

from qcompiler.errors import Skip
from qcompiler.rewrite.rules import (
    ANY,
    CONST,
    OPTIONAL,
    PASSES,
    STAGES,
    Explain,
    Pass,
    Pattern,
    Rule,
    graph_pass,
    op,
    rewrite,
    rule,
    stage_of,
    taken,
)

__all__ = [
    "ANY",
    "CONST",
    "OPTIONAL",
    "PASSES",
    "STAGES",
    "Explain",
    "Pass",
    "Pattern",
    "Rule",
    "Skip",
    "graph_pass",
    "op",
    "rewrite",
    "rule",
    "stage_of",
    "taken",
]
