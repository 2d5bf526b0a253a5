"""Slices through a recipe, batch by batch, made ready by threads while the network works on those before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from cspine.data.types import Slice
from cspine.machine import count_cpus
from cspine.preprocess import Recipe

ReadSlice = Callable[[int], Slice]
Pixels = npt.NDArray[np.uint8]

_AHEAD = 2
"""Batches that are being made ready while the caller works on one."""


def prepare_batches(recipe: Recipe, size: int, count: int, read: ReadSlice) -> Iterator[Pixels]:
    """Batches of slices as a network takes them, in order.

    OpenCV and numpy let go of Python's lock, so the threads share the cores with the network.

    Args:
        recipe: What is done to each slice.
        size: Slices of a batch; the last may have fewer.
        count: Slices in all.
        read: Gives slice 0 to `count` - 1, with the recipe's `offsets_mm`; is called by several threads.

    Raises:
        RecipeError: the recipe does not take these slices.
        Exception: of `read`.
    """

    def prepare(index: int) -> Pixels:
        return recipe.apply(read(index))

    waiting: deque[list[Future[Pixels]]] = deque()
    with ThreadPoolExecutor(count_cpus(), "prepare") as pool:
        try:
            for start in range(0, count, size):
                waiting.append(
                    [pool.submit(prepare, index) for index in range(start, min(start + size, count))]
                )
                if len(waiting) > _AHEAD:
                    yield np.stack([future.result() for future in waiting.popleft()])
            while waiting:
                yield np.stack([future.result() for future in waiting.popleft()])
        finally:
            for batch in waiting:
                for future in batch:
                    future.cancel()
