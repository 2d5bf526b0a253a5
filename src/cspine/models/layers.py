"""One row of a network's layer diagram. Importing this module loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A layer or stage of a network.

    Attributes:
        name: Its name in the network, such as "layer1".
        kind: What it is, such as "Bottleneck".
        output_shape: Without the batch, such as (256, 56, 56).
        parameters: Learned values in it, all repeats together.
        repeats: How many blocks of this kind follow one another in it.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    repeats: int = 1
