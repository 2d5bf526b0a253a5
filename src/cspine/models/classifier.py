"""The network: scaling, a timm backbone, the head of the paper; pixels in, one logit for `fracture` out."""

from __future__ import annotations

import math
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from cspine.errors import InputError
from cspine.models.depthwise import hold_depthwise
from cspine.models.zoo import DENSE_UNITS, HeadKind, ModelSpec
from cspine.preprocess import Scale


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
