"""Which layer of a backbone a class-activation map is read from, and where in the picture its cells lie.

No table of names: timm says where each stage of a network ends (`feature_info`), and one pass of an empty picture shows
the sizes, and the strides and paddings on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cspine.errors import InputError
from cspine.models.classifier import FractureClassifier

FEWEST_CELLS = 7
"""Cells along the shorter side: what the last stage has at 224 pixels. Of smaller pictures an earlier stage is read."""


@dataclass(frozen=True)
class SpatialLayer:
    """A layer whose output is still a picture.

    Attributes:
        name: In the network.
        module: The layer itself.
        size: (rows, columns) of its output.
        start_px, step_px: Pixel of the network's input over which the first cell is centred, and pixels from one cell
            to the next, along rows and columns alike: what strides and paddings come to. The plain way, to stretch the
            map over the picture, is off by half a cell for networks that pad their strided convolutions (ResNet,
            MobileNet), and right for those that do not (ConvNeXt).
    """

    name: str
    module: nn.Module
    size: tuple[int, int]
    start_px: float
    step_px: float


def find_spatial_layer(
    model: FractureClassifier, shape: tuple[int, ...], fewest_cells: int = FEWEST_CELLS
) -> SpatialLayer:
    """The last layer whose output has at least `fewest_cells` a side; the finest stage's where none has.

    Args:
        model: Any classifier of this project.
        shape: Of the recipe's result: (height, width) or (channels, height, width).
        fewest_cells: 1 takes the last one, whatever the size of the picture.

    Raises:
        InputError: the backbone has no layers of that kind, as a transformer.
    """
    stages = _list_stages(model.backbone)
    seen, strides = _trace(model, shape, stages)
    if not seen:
        raise InputError(
            f"{model.spec.backbone} has no layer whose output is a picture, which Grad-CAM reads",
            where=f"model {model.spec.name}",
            fix="take the method occlusion",
        )
    wide = [name for name, size in seen.items() if min(size) >= fewest_cells]
    name = wide[-1] if wide else max(seen, key=lambda each: min(seen[each]))
    start_px, step_px = _find_centres(strides, seen[name][0])
    return SpatialLayer(name, stages[name], seen[name], start_px, step_px)


def _list_stages(backbone: nn.Module) -> dict[str, nn.Module]:
    """Where timm says that a stage ends, and the whole of what comes before the pooling: the top modules."""
    modules = dict(backbone.named_modules())
    names = [str(stage["module"]) for stage in getattr(backbone, "feature_info", ()) if "module" in stage]
    names += [name for name, _ in backbone.named_children()]
    return {name: modules[name] for name in dict.fromkeys(names) if name in modules}


_Strides = list[tuple[int, float, int, int]]  # rows in, pixels that the middle moves, stride, rows out


def _trace(
    model: FractureClassifier, shape: tuple[int, ...], stages: dict[str, nn.Module]
) -> tuple[dict[str, tuple[int, int]], _Strides]:
    """Sizes of the stages' outputs, in the order in which they end, and all layers with strides or without padding."""
    seen: dict[str, tuple[int, int]] = {}
    strides: _Strides = []
    handles = []

    def note_stage(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            # (N, channels, rows, columns) with more than one cell; what is pooled is no picture.
            if output.ndim == 4 and min(output.shape[2:]) > 1:
                seen.pop(name, None)
                seen[name] = (output.shape[2], output.shape[3])
            if output.ndim == 3:
                seen.clear()  # tokens: what a transformer cut into patches is no picture any more

        return hook

    def note_stride(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kernel, stride, padding = (_first(getattr(module, key)) for key in _GEOMETRY)
        strides.append((inputs[0].shape[2], (kernel - 1) / 2 - padding, stride, output.shape[2]))

    for name, module in stages.items():
        handles.append(module.register_forward_hook(note_stage(name)))
    for module in model.backbone.modules():
        if all(hasattr(module, key) for key in _GEOMETRY):
            handles.append(module.register_forward_hook(note_stride))
    try:
        with torch.inference_mode():
            device = next(model.parameters()).device
            model(torch.zeros((1, *shape), dtype=torch.uint8, device=device))
    finally:
        for handle in handles:
            handle.remove()
    if not str(getattr(model.backbone, "output_fmt", "NCHW")).endswith("NCHW"):
        seen.clear()
    return seen, strides


_GEOMETRY = ("kernel_size", "stride", "padding")


def _first(value: Any) -> int:
    """Of a size along rows and columns that of the rows. "same" is written as no number: then no padding before."""
    if isinstance(value, str):
        return 0
    return int(value[0] if isinstance(value, tuple) else value)


def _find_centres(strides: _Strides, rows: int) -> tuple[float, float]:
    """Start and step of the cells of a layer of so many rows, from each change of size in turn."""
    start_px, step_px = 0.0, 1.0
    size = strides[0][0]
    while size != rows:
        changes = [entry for entry in strides if entry[0] == size != entry[3]]
        if not changes:
            break
        # Branches beside each other change the size alike; where they move the middle differently, half way.
        start_px += step_px * sum(moved for _, moved, _, _ in changes) / len(changes)
        step_px *= changes[0][2]
        size = changes[0][3]
    return start_px, step_px
