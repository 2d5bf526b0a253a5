"""Which networks there are, and how one is described. Importing this module loads no torch.

The paper's three models are entries of `ZOO`; any other timm name works too, with the standard head. A `ModelSpec` is
all that is needed to build a network again (its weights aside) and travels inside the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from cspine.errors import InputError


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
