"""Graphs with repeated operators and shared operands compute the same after every stage."""

from __future__ import annotations

import pytest
from random_passes import check


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", range(0, 300, 30))
def test_shared_operands_and_equal_operators_keep_their_meaning(first: int) -> None:
    for seed in range(first, first + 30):
        check(seed)
