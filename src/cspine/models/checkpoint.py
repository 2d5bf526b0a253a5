"""A checkpoint: one `.safetensors` file whose header says everything that is needed to use the weights rightly.

There is no way to load the weights without their recipe, so training and prediction cannot drift apart. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from cspine.data.types import Label
from cspine.errors import CheckpointError, InputError
from cspine.files import atomic_file
from cspine.models.classifier import FractureClassifier, build_classifier
from cspine.models.zoo import ModelSpec
from cspine.preprocess import Recipe

HEADER_KEY = "cspine"
_LENGTH_BYTES = 8  # a safetensors file begins with the length of its JSON header
_FIX_DAMAGED = (
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
    manifest_hash: str
    weights: str
    training: dict[str, bool | int | float | str | None] = {}
    versions: dict[str, str] = {}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the network in evaluation mode, its header, and the hash of the file."""

    model: FractureClassifier
    header: CheckpointHeader
    hash: str


def write_checkpoint(path: Path, model: FractureClassifier, header: CheckpointHeader) -> str:
    """Write weights and header to one file, atomically.

    Returns:
        The checkpoint's hash.

    Raises:
        OutputError: the file cannot be written.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_file(path) as temporary:
        save_file(state, temporary, metadata={HEADER_KEY: header.model_dump_json()})
        return _hash_file(temporary)


def read_header(path: Path) -> CheckpointHeader:
    """Read what a checkpoint says of itself, without its weights.

    Raises:
        CheckpointError: no such file, not safetensors, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError("there is no such checkpoint", where=str(path), fix="name a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"the file is damaged or not safetensors: {error}", where=str(path), fix=_FIX_DAMAGED
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


def rewrite_header(
    path: Path, *, calibration: Calibration | None = None, threshold: float | None = None
) -> str:
    """Give a checkpoint another calibration or threshold, atomically and without touching its weights.

    The threshold is of the probability after the calibration, so one that was chosen before a calibration does not
    fit it. The hash is that of the file and changes; predictions made before name the old one.

    Args:
        path: A checkpoint; it is replaced.
        calibration, threshold: What to put in; None leaves what is there.

    Returns:
        The checkpoint's new hash.

    Raises:
        InputError: a threshold outside 0..1, or a calibration that is not finite or does not rise.
        CheckpointError: as `read_header`.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    header = read_header(path)
    if calibration is not None:
        if not (0 < calibration.slope < math.inf and math.isfinite(calibration.intercept)):
            raise InputError("a calibration has a positive slope and a finite intercept", where=str(path))
        header = header.model_copy(update={"calibration": calibration})
    if threshold is not None:
        if not 0 <= threshold <= 1:
            raise InputError(f"a threshold is a probability, not {threshold}", where=str(path))
        header = header.model_copy(update={"threshold": float(threshold)})
    with atomic_file(path) as temporary, path.open("rb") as old, temporary.open("wb") as new:
        size = int.from_bytes(old.read(_LENGTH_BYTES), "little")
        entries = json.loads(old.read(size))
        entries["__metadata__"][HEADER_KEY] = header.model_dump_json()
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _LENGTH_BYTES)  # the format wants the tensors aligned
        new.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        shutil.copyfileobj(old, new)
        new.flush()
        return _hash_file(temporary)


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a network with its recipe.

    Raises:
        CheckpointError: as `read_header`, or the tensors do not fit the network that the header describes.
    """
    path = Path(path)
    header = read_header(path)
    try:
        model = build_classifier(header.spec, header.recipe.scale, seed=0)
    except InputError as error:
        raise CheckpointError(
            f"the network of the checkpoint cannot be built: {error.what}",
            where=str(path),
            fix="use the version of timm that the checkpoint was made with",
        ) from error
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise CheckpointError(
            f"the tensors do not fit {header.spec.backbone} as the header describes it",
            where=str(path),
            fix=_FIX_DAMAGED,
        ) from error
    return Checkpoint(model.to(memory_format=torch.channels_last).eval(), header, _hash_file(path))


def _hash_file(path: Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
