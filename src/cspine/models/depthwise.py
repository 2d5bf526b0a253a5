"""Depthwise convolutions on CPUs: in fp32 where the rest of the network trains in bf16.

PyTorch's bf16 backward pass of them is slower there than its fp32 one (docs/log.md). What they give is nearer to the
fp32 network; weights and names stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that leaves autocast while it is trained on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """As of `nn.Conv2d`."""
        if input.device.type != "cpu" or not (self.training and torch.is_autocast_enabled("cpu")):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


def hold_depthwise(network: nn.Module) -> None:
    """Make the depthwise convolutions of a network such ones, in place."""
    for module in network.modules():
        # Subclasses pad in ways of their own and are left alone.
        if type(module) is nn.Conv2d and module.groups == module.in_channels > 1:
            module.__class__ = DepthwiseConv2d
