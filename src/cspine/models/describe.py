"""What a network consists of, read off the network itself by one forward pass."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cspine.models.classifier import FractureClassifier
from cspine.models.layers import LayerRow

_PLAIN = ("Sequential", "ModuleList", "ConvNeXtStage")


@torch.no_grad()
def list_layers(model: FractureClassifier, size_px: tuple[int, int]) -> list[LayerRow]:
    """The stages of scaling, backbone and head in the order in which a slice of `size_px` passes through them."""
    named = {"scale": model.scale, **_list_stages(model.backbone), **dict(model.head.named_children())}
    rows: list[LayerRow] = []
    hooks = []
    for name, module in named.items():

        def record(part: nn.Module, _: Any, output: object, name: str = name) -> None:
            if isinstance(output, Tensor):
                count = sum(parameter.numel() for parameter in part.parameters())
                kind, repeats = _describe_kind(part)
                # The head applies its ReLU as a function, which no hook sees.
                kind += " + ReLU" if part is getattr(model.head, "dense", None) else ""
                rows.append(LayerRow(name, kind, tuple(output.shape[1:]), count, repeats))

        hooks.append(module.register_forward_hook(record))
    try:
        _run_once(model, size_px)
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def _list_stages(backbone: nn.Module) -> dict[str, nn.Module]:
    """The children of a backbone; a sequence of stages is opened once, so that each stage is one row."""
    stages: dict[str, nn.Module] = {}
    for name, child in backbone.named_children():
        inner = list(child.named_children())
        if name in ("blocks", "stages", "head") and inner:
            stages.update({f"{name}.{key}": part for key, part in inner})
        else:
            stages[name] = child
    return {name: part for name, part in stages.items() if not _does_nothing(part)}


def _does_nothing(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and module.p == 0)


def _describe_kind(module: nn.Module) -> tuple[str, int]:
    """("Bottleneck", 3) of a stage, ("Conv2d 3x3 / 2", 1) of a convolution, else the class."""
    if isinstance(module, nn.Conv2d):
        kernel, stride = module.kernel_size[0], module.stride[0]
        return f"Conv2d {kernel}x{kernel}" + (f" / {stride}" if stride > 1 else ""), 1
    kind = type(module).__name__
    if kind not in _PLAIN:
        pooling = getattr(module, "pool_type", "")
        return kind + (f" ({pooling})" if pooling else ""), 1
    # ConvNeXt's stages keep their blocks one level down.
    blocks = cast(nn.Module, getattr(module, "blocks", module))
    counts = Counter(type(part).__name__ for part in blocks.children())
    if len(counts) == 1:
        return next(iter(counts.items()))
    return " + ".join(f"{count} x {name}" if count > 1 else name for name, count in counts.items()), 1


@torch.no_grad()
def count_flops(model: FractureClassifier, size_px: tuple[int, int]) -> int:
    """FLOPs of one slice: convolutions and matrix products, a multiply-add counted as two."""
    with FlopCounterMode(display=False) as counter:
        _run_once(model, size_px)
    return int(counter.get_total_flops())


def _run_once(model: FractureClassifier, size_px: tuple[int, int]) -> None:
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()(torch.zeros(1, *size_px, dtype=torch.uint8, device=device))
    model.train(was_training)
