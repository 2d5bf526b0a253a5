"""The network: scaling, a timm backbone, the head of the paper; pixels in, one logit for `fracture` out."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cspine.core.errors import InputError
from cspine.models.header import DENSE_UNITS, HeadKind, LayerRow, ModelSpec
from cspine.preprocess import Recipe, Scale

_COLUMNS = 3
"""Of the widest kernel whose gradient oneDNN finds by its depthwise code."""


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that, while it is trained on a CPU, leaves autocast and learns a wide kernel in parts.

    PyTorch's bf16 backward pass is slower there than its fp32 one. For kernels of more than three columns oneDNN (3.12,
    AVX-512) has no depthwise code that finds the gradient of the weights: it takes each channel for a group of sixteen.
    For parts of three columns it has (docs/log.md). Weights and names stay as they are.
    """

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


class ScaleLayer(nn.Module):
    """The recipe's `Scale` on the device: x / divisor (paper eq. 1) to equal channels, then mean and std."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        mean = torch.tensor(scale.mean).view(1, -1, 1, 1)
        std = torch.tensor(scale.std).view(1, -1, 1, 1)
        # One multiply-add a pixel: (x / d - m) / s = x * (1 / (d s)) - m / s. Not weights: the recipe holds them.
        self.register_buffer("gain", 1.0 / (scale.divisor * std), persistent=False)
        self.register_buffer("offset", -mean / std, persistent=False)
        self.gain: Tensor
        self.offset: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 1, H, W) or (N, H, W), uint8 or float, 0..255 -> (N, channels, H, W) float32."""
        if pixels.ndim == 3:
            pixels = pixels.unsqueeze(1)
        scaled = torch.addcmul(self.offset, pixels.to(torch.float32), self.gain)
        return scaled.contiguous(memory_format=torch.channels_last)


class SoftmaxHead(nn.Module):
    """z = W F + b over (normal, fracture), then softmax (paper eq. 11 to 13).

    The softmax of two scores is the sigmoid of their difference, so `forward` gives z[fracture] - z[normal]: the logit
    whose cross-entropy is the softmax cross-entropy.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 2)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def class_scores(self, features: Tensor) -> Tensor:
        """(N, F) -> (N, 2) scores z, in label order."""
        return cast(Tensor, self.linear(features))

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> (N,) logit of `fracture`."""
        scores = self.class_scores(features)
        return scores[:, 1] - scores[:, 0]


class DenseSigmoidHead(nn.Module):
    """h = max(0, W' x + b') with 256 units, then one unit whose sigmoid is P(fracture) (paper eq. 14 and 15)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(features, DENSE_UNITS)
        self.output = nn.Linear(DENSE_UNITS, 1)
        for layer in (self.dense, self.output):
            # As ConvNeXt's own layers. A larger start calls every slice the same, far from p = 0.5, and from random
            # weights the backbone then never learns (docs/log.md).
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> (N,) logit of `fracture`."""
        hidden = torch.relu(self.dense(features))
        return cast(Tensor, self.output(hidden)).squeeze(1)


_HEADS: dict[HeadKind, type[SoftmaxHead] | type[DenseSigmoidHead]] = {
    HeadKind.SOFTMAX: SoftmaxHead,
    HeadKind.DENSE_SIGMOID: DenseSigmoidHead,
}


_GRAY_MEAN, _GRAY_STD = 0.449, 0.226
"""ImageNet's, over the three colours: what pretrained networks are given."""


class FractureClassifier(nn.Module):
    """Scaling, backbone with its own global pooling, head. Every model of the project is one of these."""

    def __init__(self, spec: ModelSpec, scale: Scale) -> None:
        super().__init__()
        self.spec = spec
        self.scale = ScaleLayer(scale)
        self.backbone = create_backbone(spec, scale.channels)
        start_stem(self.backbone)
        hold_depthwise(self.backbone)
        self.head = _HEADS[spec.head](_count_features(self.backbone))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 1, H, W) or (N, H, W) pixels, 0..255 -> (N,) float32 logits of `fracture`."""
        return self.answer(self.find_features(pixels))

    def find_features(self, pixels: Tensor) -> Tensor:
        """Pixels as for `forward` -> (N, features), what the head is given."""
        return cast(Tensor, self.backbone(self.scale(pixels)))

    def find_width(self) -> int:
        """How many features the head is given."""
        return _count_features(self.backbone)

    def answer(self, features: Tensor) -> Tensor:
        """(N, features) -> (N,) float32 logits of `fracture`."""
        # The head costs nothing, and its logits would tie in bf16, which has three digits.
        with torch.autocast(features.device.type, enabled=False):
            return cast(Tensor, self.head(features.float()))


def create_backbone(spec: ModelSpec, channels: int) -> nn.Module:
    """A timm backbone with pooled features and random weights.

    Raises:
        InputError: timm has no such architecture, or it refuses the options.
    """
    if not timm.is_model(spec.backbone):
        close = timm.list_models(f"*{spec.backbone.split('_')[0]}*")[:5]
        raise InputError(
            f"timm has no architecture {spec.backbone!r}",
            where=f"models.{spec.name}.backbone",
            fix="one of " + ", ".join(close) if close else "see timm.list_models()",
        )
    try:
        options: dict[str, Any] = {**spec.backbone_options, "num_classes": 0, "in_chans": channels}
        backbone = timm.create_model(spec.backbone, pretrained=False, **options)
        _count_features(
            backbone
        )  # `features_only` gives something else than a network with one vector at its end
        return backbone
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, AssertionError) as error:
        raise InputError(
            f"timm cannot build {spec.backbone}: {str(error) or type(error).__name__}",
            where=f"models.{spec.name}.backbone_options",
            fix="leave out the options that this architecture does not know",
        ) from error


def start_stem(backbone: nn.Module) -> None:
    """Start a patch stem whose bias is zero as if its input were centred, with a bias of its own; others stay.

    ConvNeXt normalises each patch over its channels right after the first convolution. A flat gray patch of value v
    becomes v * w + bias there: with timm's zero bias all values v > 0 come out the same, air like bone. And what
    differs within a patch is small beside its mean, on which the norm then spends its range. From random weights the
    network learns nothing for many epochs either way (docs/log.md). So the bias is PyTorch's own random one, uniform
    within 1 / sqrt(fan in), and the weights start as if x on 0..1 had gone through (x - mean) / std with the mean and
    std that pretrained networks expect; the recipe stays x / 255. Pretrained weights replace all of this.
    """
    stem = getattr(backbone, "stem", None)
    if not isinstance(stem, nn.Sequential) or len(stem) < 2:
        return
    convolution, norm = stem[0], stem[1]
    if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.LayerNorm) and convolution.bias is not None:
        bound = 1 / math.sqrt(convolution.weight[0].numel())
        nn.init.uniform_(convolution.bias, -bound, bound)
        with torch.no_grad():
            convolution.weight.div_(_GRAY_STD)
            convolution.bias.sub_(_GRAY_MEAN * convolution.weight.sum((1, 2, 3)))


def _count_features(backbone: nn.Module) -> int:
    # Some timm networks keep a hidden layer behind the pooling (MobileNetV3's conv_head), which num_features omits.
    features = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    return int(cast(int, features))


def build_classifier(spec: ModelSpec, scale: Scale, *, seed: int) -> FractureClassifier:
    """Build a network whose random weights depend on `seed` alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FractureClassifier(spec, scale)


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


INPUT, LOGIT, FEATURES = "pixels", "logit", "features"
OPSET = 18
_TRACED_BATCH = 2  # one slice could be taken for a constant


class Graph(nn.Module):
    """(N, *recipe.shape) uint8 -> (N,) logits of `fracture` and (N, features), both float32."""

    def __init__(self, model: FractureClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Answer, and what the head was given for it."""
        features = self.model.find_features(pixels)
        return self.model.answer(features), features.float()


def make_onnx(model: FractureClassifier, recipe: Recipe) -> bytes:
    """The network as an ONNX file of any batch size; `model` must lie on the CPU, in evaluation mode.

    By PyTorch's older exporter: the newer one needs one more package and gains nothing here (docs/log.md).
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        path = Path(folder) / "model.onnx"
        warnings.simplefilter(
            "ignore"
        )  # that the older exporter is the older one, and what tracing cannot see
        torch.onnx.export(
            Graph(model).eval(),
            (torch.zeros((_TRACED_BATCH, *recipe.shape), dtype=torch.uint8),),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[LOGIT, FEATURES],
            dynamic_axes={name: {0: "batch"} for name in (INPUT, LOGIT, FEATURES)},
        )
        return path.read_bytes()
