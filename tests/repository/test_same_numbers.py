"""A test draws the same random numbers alone and after others."""

import numpy as np
import pytest

RNG = np.random.default_rng(11)
FIRST = np.random.default_rng(11).random()


@pytest.mark.parametrize("time", [1, 2])
def test_numbers_do_not_depend_on_which_tests_ran_before(time: int) -> None:
    assert RNG.random() == FIRST
