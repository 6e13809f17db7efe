"""Sliding windows over spatial dimensions, shared by convolutions and pools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.errors import Error
from qcompiler.ir import MAX_ELEMENTS, Attr, Dim, Node
from qcompiler.ops.registry import fresh

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """One entry per spatial dimension; `pads` are (begin, end), None if unknown."""

    kernel: Ints
    strides: Ints
    dilations: Ints
    pads: tuple[tuple[int, int] | None, ...]
    ceil: bool = False

    @staticmethod
    def of(node: Node, sizes: Sequence[Dim], kernel: Sequence[Dim] | None = None) -> Window:
        """The window of a node's attributes over these sizes; `kernel` is the weights' size."""
        given = _numbers(node, "kernel_shape", len(sizes), None)
        if kernel is not None:
            known = tuple(d for d in kernel if isinstance(d, int))
            if len(known) != len(sizes) or given not in (None, known):
                raise Error(f"weights of size {list(kernel)} do not fit {len(sizes)} dimensions")
            given = known
        if given is None or min(given) < 1 or not sizes:
            raise Error(f"a window of size {list(given or ())} over {len(sizes)} dimensions")
        strides = _numbers(node, "strides", len(sizes), 1)
        dilations = _numbers(node, "dilations", len(sizes), 1)
        assert strides is not None
        assert dilations is not None
        if min(*strides, *dilations) < 1:
            raise Error(f"strides {list(strides)} or dilations {list(dilations)} below 1")
        window = Window(given, strides, dilations, ((0, 0),) * len(sizes), _flag(node, "ceil_mode"))
        return window.padded(node, sizes)

    def padded(self, node: Node, sizes: Sequence[Dim]) -> Window:
        """With the padding of the node's `pads` or `auto_pad`."""
        mode = node.attrs.get("auto_pad", "NOTSET")
        pads: tuple[tuple[int, int] | None, ...] = self.pads
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            pads = tuple(self.same(i, s, mode == "SAME_UPPER") for i, s in enumerate(sizes))
        elif mode == "NOTSET":
            flat = _numbers(node, "pads", 2 * len(sizes), 0)
            assert flat is not None
            if min(flat) < 0:
                raise Error(f"negative pads {list(flat)}")
            pads = tuple(zip(flat[: len(sizes)], flat[len(sizes) :], strict=True))
        elif mode != "VALID":
            raise Error(f"unknown auto_pad {mode!r}")
        return Window(self.kernel, self.strides, self.dilations, pads, self.ceil)

    def same(self, axis: int, size: Dim, upper: bool) -> tuple[int, int] | None:
        """SAME padding: ceil(size / stride) outputs."""
        reach, stride = self.reach[axis], self.strides[axis]
        if isinstance(size, int):
            needed = max((-(-size // stride) - 1) * stride + reach - size, 0)
        elif stride == 1:
            needed = reach - 1
        else:
            return None
        less, more = needed // 2, needed - needed // 2
        return (less, more) if upper else (more, less)

    @property
    def reach(self) -> Ints:
        """The extent of one window, with dilation."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def outputs(self, sizes: Sequence[Dim]) -> tuple[Dim, ...]:
        """Number of windows along each dimension."""
        return tuple(self._output(i, size) for i, size in enumerate(sizes))

    def _output(self, axis: int, size: Dim) -> Dim:
        pads, reach, stride = self.pads[axis], self.reach[axis], self.strides[axis]
        if pads is None:  # those of SAME, over an open size
            return settled((Size.of(size) + (stride - 1)) // stride)
        if isinstance(size, str):
            if self.ceil and pads[1] > reach:
                return fresh()
            end = self.ceil_pad(axis, pads[1]) if self.ceil else pads[1]
            return settled((Size.of(size) + (pads[0] + end - reach)) // stride + 1)
        if size + sum(pads) > MAX_ELEMENTS:
            raise Error(f"{size} padded by {pads} is beyond {MAX_ELEMENTS}")
        room = size + sum(pads) - reach
        if room < 0:
            raise Error(f"a window over {reach} does not fit into {size} padded by {pads}")
        if not self.ceil:
            return room // stride + 1
        count = -(-room // stride) + 1
        # A window that starts in the end padding is left out.
        return count - 1 if (count - 1) * stride >= size + pads[0] else count

    def ceil_pad(self, axis: int, end: int) -> int:
        """The end padding, instead of `end`, with which there are as many windows without
        ceil_mode, for every size: one more begins in what is left over, but none behind the image.
        """
        return min(end + self.strides[axis] - 1, self.reach[axis] - 1)

    def inside(self, sizes: Sequence[int]) -> Any:
        """Of each filter position, [*kernel], in what share of the windows it is not on padding."""
        shares = np.ones(())
        outputs = self.outputs(sizes)
        for i, (size, count) in enumerate(zip(sizes, outputs, strict=True)):
            pads = self.pads[i]
            assert pads is not None
            assert isinstance(count, int)
            first = np.arange(count)[:, None] * self.strides[i] - pads[0]
            at = first + np.arange(self.kernel[i]) * self.dilations[i]
            shares = shares[..., None] * ((at >= 0) & (at < size)).mean(axis=0)
        return shares

    def taps(self, x: Any, outputs: Sequence[int], first: int = 1) -> Iterator[Any]:
        """A padded array -> for each filter position, in order, its values in all windows.

        The array's dimensions from `first` on are the spatial ones.
        """
        for index in np.ndindex(*self.kernel):
            steps = zip(index, self.dilations, self.strides, outputs, strict=True)
            cut = (slice(i * d, i * d + (n - 1) * s + 1, s) for i, d, s, n in steps)
            yield x[(slice(None),) * first + tuple(cut)]

    def pad(self, x: Any, outputs: Sequence[int], value: float, first: int = 1) -> Any:
        """Pad an array with `value` up to the end of the last window."""
        widths = [(0, 0)] * x.ndim
        for i, (count, pads) in enumerate(zip(outputs, self.pads, strict=True)):
            assert pads is not None
            last = (count - 1) * self.strides[i] + self.reach[i]
            widths[first + i] = (pads[0], max(last - pads[0] - x.shape[first + i], 0))
        return np.pad(x, widths, constant_values=value) if any(map(any, widths)) else x


def _numbers(node: Node, key: str, count: int, default: int | None) -> Ints | None:
    """A list of `count` numbers; an absent or empty one is all `default`."""
    value: Attr = node.attrs.get(key)
    if not isinstance(value, tuple) or not value:
        return None if default is None else (default,) * count
    numbers = node.ints(key)
    if len(numbers) != count:
        raise Error(f"{key} {list(numbers)} should be {count} numbers")
    if max(map(abs, numbers), default=0) > MAX_ELEMENTS:
        raise Error(f"{key} {list(numbers)} are beyond {MAX_ELEMENTS}")
    return numbers


def _flag(node: Node, key: str) -> bool:
    return bool(node.attrs.get(key, 0))
