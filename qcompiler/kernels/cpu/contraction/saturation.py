"""Weights of a product that adds pairs in 16 bits and saturates there -> weights with which it
never does, and how many pairs are best added in 16 bits before they go on to 32.

What is cut off the weights is multiplied on its own afterwards (operands.py). Where weights are
small enough that little is cut off even so, several pairs are added in 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcompiler.ir import Array

_SAMPLE = 256  # columns that stand for all
_BESIDE = 16  # columns of a usual panel


@dataclass(frozen=True)
class Limit:
    """What weights whose products are added in one 16-bit lane may sum up to: by bytes without a
    sign (255 times 128 fits) the positive and the negative ones each, by bytes with one (128 times
    255 fits) the absolute values of all.
    """

    most: int = 128
    signed: bool = False

    def excess(self, lanes: Array) -> list[tuple[Array, Array]]:
        """int16 [..., weights that meet, width] -> what each weight counts, and by how much all of
        them are too much.
        """
        kinds = [np.abs(lanes)] if self.signed else [np.maximum(s * lanes, 0) for s in (1, -1)]
        return [(counted, np.maximum(counted.sum(-2) - self.most, 0)) for counted in kinds]


def without_saturation(weights: Array, run: int = 1, limit: Limit = Limit()) -> Array:
    """int8 weights [matrix, tap, depth, width] -> the same, the first of those whose products are
    added in one 16-bit lane made smaller until all keep to the limit. Those are neighbours along
    depth, in `run` neighbouring steps of 4.
    """
    lanes = _lanes_of_words(weights, run)
    for counted, excess in limit.excess(lanes):
        for i in range(2 * run):
            cut = np.minimum(counted[..., i, :], excess)
            lanes[..., i, :] = lanes[..., i, :] - np.sign(lanes[..., i, :]) * cut
            excess = excess - cut
    *outer, depth, width = weights.shape
    steps = np.moveaxis(lanes.reshape(*lanes.shape[:-2], run, 2, width), -4, -3)
    return steps.reshape(*outer, -1, width)[..., :depth, :].astype(np.int8)


def _lanes_of_words(weights: Array, run: int) -> Array:
    """[..., depth, width] -> int16 [..., run of steps, 16-bit lane, weights that meet, width],
    filled up with zeros; a step is 4 along depth, two lanes.
    """
    *outer, depth, width = weights.shape
    more = [(0, 0)] * len(outer) + [(0, -depth % (4 * run)), (0, 0)]
    steps = np.pad(weights, more).astype(np.int16).reshape(*outer, -1, run, 2, 2, width)
    return np.moveaxis(steps, -3, -4).reshape(*outer, -1, 2, 2 * run, width)


def longest_run(weights: Array, limit: Limit = Limit()) -> int:
    """int8 weights [..., depth, width] -> how many steps are best added in 16 bits: each costs a
    multiplication, each run another one, and each run beyond the limit all of its steps again.
    """
    costs = {}
    sample = weights[..., :_SAMPLE]
    sample = sample[..., : max(sample.shape[-1] // _BESIDE, 1) * _BESIDE]
    for run in (1, 2, 4):
        over = [np.greater(excess, 0) for _, excess in limit.excess(_lanes_of_words(sample, run))]
        wild = np.logical_or.reduce(over).any(-2)  # [..., run, width]
        beside = wild.reshape(-1, min(_BESIDE, wild.shape[-1])).any(-1)
        costs[run] = 1 / run + 2 * float(beside.mean())
    return min(costs, key=costs.__getitem__)
