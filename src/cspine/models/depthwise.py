"""Depthwise convolutions on CPUs: in fp32 where the rest of the network trains in bf16, wide ones learned in parts.

PyTorch's bf16 backward pass of them is slower there than its fp32 one. For kernels of more than three columns oneDNN
(3.12, AVX-512) has no depthwise code that finds the gradient of the weights: it takes each channel for a group of
sixteen. For parts of three columns it has (docs/log.md). Weights and names stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_COLUMNS = 3
"""Of the widest kernel whose gradient oneDNN finds by its depthwise code."""


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that, while it is trained on a CPU, leaves autocast and learns a wide kernel in parts."""

    def forward(self, input: Tensor) -> Tensor:
        """As of `nn.Conv2d`."""
        if input.device.type != "cpu" or not self.training:
            return super().forward(input)
        if not torch.is_autocast_enabled("cpu"):
            return self._run(input)
        with torch.autocast("cpu", enabled=False):
            return self._run(input.float())

    def _run(self, input: Tensor) -> Tensor:
        # What is traced goes elsewhere, where this module's Python is not.
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if traced or not self._is_wide(input):
            return super().forward(input)
        found: Tensor = _WideConv2d.apply(input, self.weight, self.bias)
        return found

    def _is_wide(self, input: Tensor) -> bool:
        """Whether the kernel is wide, keeps the size of the pictures, and is no wider than they are.

        Narrower pictures would be moved by more than their width; kernels of one row gain nothing.
        """
        height, width = self.kernel_size
        return (
            input.ndim == 4
            and input.shape[-1] >= width > _COLUMNS
            and height > 1
            and height % 2 == width % 2 == 1
            and self.in_channels == self.out_channels
            and self.stride == self.dilation == (1, 1)
            and self.padding == (height // 2, width // 2)
            and self.padding_mode == "zeros"
        )


class _WideConv2d(torch.autograd.Function):
    """A depthwise convolution that keeps the size of the picture; the gradient of its weights is found in parts.

    A part is up to three columns of the kernel: these see a picture that is moved to the side.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(input, weight, bias, 1, _half(weight), 1, len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        input, weight, bias = inputs
        ctx.save_for_backward(input, weight)
        ctx.has_bias = bias is not None

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        (grad,) = grads
        wanted = ctx.needs_input_grad
        of_input = of_weight = of_bias = None
        if wanted[0]:
            of_input = _find_gradient(grad, input, weight, _half(weight), of_weight=False)
        if wanted[1]:
            parts = [_find_part(grad, input, weight, *part) for part in _split_columns(weight)]
            of_weight = torch.cat(parts, 3)
        if ctx.has_bias and wanted[2]:
            of_bias = grad.sum((0, 2, 3))
        return of_input, of_weight, of_bias


def _half(weight: Tensor) -> list[int]:
    """Rows and columns of padding that keep the size of a picture."""
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
    rows, half = _half(weight)
    left, right = half - first, first + columns - 1 - half
    part = weight[:, :, :, first : first + columns]
    if left == right:
        return _find_gradient(grad, input, part, [rows, left], of_weight=True)
    # Where one of the two is negative, the picture is cut there: what it shows is what these columns see.
    return _find_gradient(grad, F.pad(input, (left, right)), part, [rows, 0], of_weight=True)


def _find_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, padding: list[int], *, of_weight: bool
) -> Tensor:
    """Of the weights or else of the input."""
    mask = [not of_weight, of_weight, False]
    found: Tensor = torch.ops.aten.convolution_backward(
        grad, input, weight, None, [1, 1], padding, [1, 1], False, [0, 0], len(weight), mask
    )[int(of_weight)]
    return found


def hold_depthwise(network: nn.Module) -> None:
    """Make the depthwise convolutions of a network such ones, in place."""
    for module in network.modules():
        # Subclasses pad in ways of their own and are left alone.
        if type(module) is nn.Conv2d and module.groups == module.in_channels > 1:
            module.__class__ = DepthwiseConv2d
