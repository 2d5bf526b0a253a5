"""Which networks there are, and how one is described. Importing this module loads no torch.

The paper's three models are entries of `ZOO`; any other timm name works too, with the standard head. A `ModelSpec` is
all that is needed to build a network again (its weights aside) and travels inside the checkpoint.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from cspine.core.aggregation import Aggregation
from cspine.core.errors import CheckpointError, InputError
from cspine.core.types import Label
from cspine.preprocess import Recipe


class HeadKind(StrEnum):
    """What follows the pooled features. Both give one logit for `fracture`.

    softmax: linear to two classes, softmax (paper eq. 11 for MobileNetV2, eq. 12 and 13 for ResNet50).
    dense_sigmoid: Dense(256) + ReLU, then one sigmoid unit (paper eq. 14 and 15, ConvNeXt-Tiny).
    """

    SOFTMAX = "softmax"
    DENSE_SIGMOID = "dense_sigmoid"


DENSE_UNITS = 256
"""Width of the hidden layer of `HeadKind.DENSE_SIGMOID` (paper, section III.D)."""


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """One of the paper's models.

    Attributes:
        backbone: timm architecture name.
        head: The head that the paper gives it.
        tag: The pinned timm tag that `weights = "pretrained"` means.
        parameters: Of backbone and head together.
        flops: At 1 x 3 x 224 x 224, convolutions and matrix products, a multiply-add counted as two.
        equations: Where the paper defines the head.
    """

    backbone: str
    head: HeadKind
    tag: str
    parameters: int
    flops: int
    equations: str


# The counts are written down so that listing the models needs no torch; a test holds them to the real networks.
ZOO: dict[str, ZooEntry] = {
    "mobilenetv2": ZooEntry(
        "mobilenetv2_100", HeadKind.SOFTMAX, "mobilenetv2_100.ra_in1k", 2_226_434, 598_993_664, "11"
    ),
    "resnet50": ZooEntry(
        "resnet50", HeadKind.SOFTMAX, "resnet50.a1_in1k", 23_512_130, 8_174_280_704, "12, 13"
    ),
    "convnext_tiny": ZooEntry(
        "convnext_tiny", HeadKind.DENSE_SIGMOID, "convnext_tiny.fb_in1k", 28_017_249, 8_909_920_256, "14, 15"
    ),
}


class ModelSpec(BaseModel):
    """What a network is, its weights aside.

    Attributes:
        name: What reports call it.
        backbone: timm architecture name, without a tag.
        head: Which head follows the pooled features.
        backbone_options: Passed to `timm.create_model`, such as `{"drop_path_rate": 0.1}`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    backbone: str = Field(min_length=1)
    head: HeadKind = HeadKind.SOFTMAX
    backbone_options: dict[str, bool | int | float | str] = {}


def resolve_spec(
    name: str,
    backbone: str | None = None,
    head: HeadKind | None = None,
    backbone_options: dict[str, bool | int | float | str] | None = None,
) -> ModelSpec:
    """Fill in what a zoo name implies; any other name is taken as a timm architecture with the softmax head.

    Raises:
        InputError: the backbone carries a tag (`resnet50.a1_in1k`): a tag names weights, not an architecture.
    """
    entry = ZOO.get(name)
    backbone = backbone or (entry.backbone if entry else name)
    if "." in backbone:
        raise InputError(
            f"{backbone!r} names weights as well as an architecture",
            where=f"models.{name}.backbone",
            fix=f'write backbone = "{backbone.split(".")[0]}" and weights = "timm:{backbone}"',
        )
    return ModelSpec(
        name=name,
        backbone=backbone,
        head=head or (entry.head if entry else HeadKind.SOFTMAX),
        backbone_options=backbone_options or {},
    )


def find_tag(backbone: str) -> str | None:
    """The pinned timm tag of a backbone of the zoo, or None."""
    return next((entry.tag for entry in ZOO.values() if entry.backbone == backbone), None)


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


HEADER_KEY = "cspine"
FIX_DAMAGED = (
    "name another file; where it lies in a run's folder, remove its model's folder there and add --resume"
)
Precision = Literal["fp32", "bf16"]


class Calibration(BaseModel):
    """logit -> slope * logit + intercept, fitted on validation data. The identity until a fit is stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slope: float = 1.0
    intercept: float = 0.0


class CheckpointHeader(BaseModel):
    """What travels with the weights.

    Attributes:
        spec: The network.
        recipe: What a slice must go through first.
        labels: Output index to class; the positive class is the one at "1".
        precision: What the network was validated with, and so what prediction uses unless told otherwise.
        calibration, threshold: From logit to probability, and from probability to a call (prob >= threshold).
        aggregation: How slices become an answer about a study; None until one is fitted.
        distance_limit: From where on a study is too far from what the network was trained on, in the units of
            `models.ood`; None where the checkpoint holds no such check.
        manifest_hash: The data that it was trained on.
        weights: Where the backbone started ("none", "timm:<tag>", "file:<name> (SHA-256 ...)").
        training: The settings, the seed and the epoch that these weights are of; for the record only.
        versions: Of the packages that made it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    spec: ModelSpec
    recipe: Recipe
    labels: dict[str, str] = {str(int(label)): label.name.lower() for label in Label}
    positive_class: Literal["fracture"] = "fracture"
    precision: Precision = "fp32"
    calibration: Calibration = Calibration()
    threshold: float = 0.5
    aggregation: Aggregation | None = None
    distance_limit: float | None = None
    manifest_hash: str
    weights: str
    training: dict[str, bool | int | float | str | None] = {}
    versions: dict[str, str] = {}


def read_header(path: Path) -> CheckpointHeader:
    """Read what a checkpoint says of itself, without its weights.

    Raises:
        CheckpointError: no such file, not safetensors, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError("there is no such checkpoint", where=str(path), fix="name a .safetensors file")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"the file is damaged or not safetensors: {error}", where=str(path), fix=FIX_DAMAGED
        ) from error
    if HEADER_KEY not in metadata:
        raise CheckpointError(
            "these are bare weights, not a cspine checkpoint: no recipe goes with them",
            where=str(path),
            fix="to start a training from them, name them as a model's weights in an experiment",
        )
    try:
        return CheckpointHeader.model_validate_json(metadata[HEADER_KEY])
    except ValidationError as error:
        raise CheckpointError(
            f"the checkpoint's header does not validate ({error.error_count()} problems)",
            where=str(path),
            fix="it may come from another version of cspine; train it again",
        ) from error


def hash_checkpoint(path: Path) -> str:
    """The name of a checkpoint in predictions and results: of the whole file, weights and header."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
