"""What travels with the weights in a checkpoint, and reading it without them; loads no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from cspine.aggregation import Aggregation
from cspine.data.types import Label
from cspine.errors import CheckpointError
from cspine.models.zoo import ModelSpec
from cspine.preprocess import Recipe

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
            `models.familiarity`; None where the checkpoint holds no such check.
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
