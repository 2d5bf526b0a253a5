"""Depthwise convolutions on CPUs: in fp32 where the rest of the network trains in bf16, wide ones learned in parts.

PyTorch's bf16 backward pass of them is slower there than its fp32 one, and for kernels of more than three columns
oneDNN has no depthwise code that finds the gradient of the weights: it takes each channel for a group of sixteen
(docs/log.md). What they give is nearer to the fp32 network; weights and names stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_COLUMNS = 3  # of the widest kernel for which oneDNN finds the gradient of the weights depthwise


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that leaves autocast while it is trained on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """As of `nn.Conv2d`."""
        if input.device.type != "cpu" or not self.training:
            return super().forward(input)
        if not torch.is_autocast_enabled("cpu"):
            return self._run(input)
        with torch.autocast("cpu", enabled=False):
            return self._run(input.float())

    def _run(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not self._is_wide(input):
            return super().forward(input)
        found: Tensor = _WideConv2d.apply(input, self.weight, self.bias)
        return found

    def _is_wide(self, input: Tensor) -> bool:
        """Whether a kernel of more than three columns goes over a picture that is wider, and keeps its size."""
        height, width = self.kernel_size
        return (
            input.shape[-1] >= width > _COLUMNS
            and self.stride == self.dilation == (1, 1)
            and height % 2 == width % 2 == 1
            and self.padding == (height // 2, width // 2)
            and self.padding_mode == "zeros"
        )


class _WideConv2d(torch.autograd.Function):
    """A depthwise convolution that keeps the size of the picture; the gradient of its weights is found in parts.

    A part is up to three columns of the kernel: these see a picture that is moved to the side.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.has_bias = bias is not None
        return F.conv2d(input, weight, bias, 1, _half(weight), 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        (grad,) = grads
        wanted = ctx.needs_input_grad
        of_input = _find_gradients(grad, input, weight, _half(weight), 0) if wanted[0] else None
        of_weight = None
        if wanted[1]:
            of_weight = torch.cat(
                [_find_part(grad, input, weight, *part) for part in _split_columns(weight)], 3
            )
        return of_input, of_weight, grad.sum((0, 2, 3)) if ctx.has_bias and wanted[2] else None


def _half(weight: Tensor) -> list[int]:
    return [weight.shape[2] // 2, weight.shape[3] // 2]


def _split_columns(weight: Tensor) -> Iterator[tuple[int, int]]:
    """First column and number of columns of every part; those in the middle are one, for which nothing is moved."""
    side = (weight.shape[3] - _COLUMNS) // 2
    starts = range(0, side, _COLUMNS)
    yield from ((start, min(_COLUMNS, side - start)) for start in starts)
    yield side, _COLUMNS
    yield from ((side + _COLUMNS + start, min(_COLUMNS, side - start)) for start in starts)


def _find_part(grad: Tensor, input: Tensor, weight: Tensor, first: int, columns: int) -> Tensor:
    """The gradient of so many columns of the weights, from the first on."""
    height_px, width_px = _half(weight)
    before, after = width_px - first, first + columns - 1 - width_px
    part = weight[:, :, :, first : first + columns]
    if before == after:
        return _find_gradients(grad, input, part, [height_px, before], 1)
    return _find_gradients(grad, F.pad(input, (before, after)), part, [height_px, 0], 1)


def _find_gradients(grad: Tensor, input: Tensor, weight: Tensor, padding: list[int], which: int) -> Tensor:
    """Of the input (0) or of the weights (1)."""
    mask = [which == 0, which == 1, False]
    found: Tensor = torch.ops.aten.convolution_backward(
        grad, input, weight, None, [1, 1], padding, [1, 1], False, [0, 0], len(weight), mask
    )[which]
    return found


def hold_depthwise(network: nn.Module) -> None:
    """Make the depthwise convolutions of a network such ones, in place."""
    for module in network.modules():
        # Subclasses pad in ways of their own and are left alone.
        if type(module) is nn.Conv2d and module.groups == module.in_channels > 1:
            module.__class__ = DepthwiseConv2d
