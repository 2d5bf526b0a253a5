"""A checkpoint: one `.safetensors` file whose header says everything that is needed to use the weights rightly.

There is no way to load the weights without their recipe, so training and prediction cannot drift apart. No pickle.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cspine.core.aggregation import Aggregation
from cspine.core.errors import CheckpointError, InputError
from cspine.core.files import atomic_file
from cspine.models.classifier import FractureClassifier, build_classifier
from cspine.models.header import (
    FIX_DAMAGED,
    HEADER_KEY,
    Calibration,
    CheckpointHeader,
    hash_checkpoint,
    read_header,
)
from cspine.models.ood import OodDetector

_OOD_PREFIX = "familiarity."
"""Tensors of this prefix are of the OOD detector, and no weights of the network."""
_OOD_PARTS = ("mean", "whitening")
_LENGTH_BYTES = 8  # a safetensors file begins with the length of its JSON header


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        model: The network in evaluation mode.
        header: What travels with it.
        hash: Of the file.
        ood: How far slices lie from those of the training; None where it was not fitted.
    """

    model: FractureClassifier
    header: CheckpointHeader
    hash: str
    ood: OodDetector | None = None


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
        return hash_checkpoint(temporary)


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
        return hash_checkpoint(temporary)


def add_study_parts(
    path: Path, output: Path, *, aggregation: Aggregation, ood: OodDetector, distance_limit: float
) -> str:
    """Write a checkpoint anew with what answers about studies need, atomically; its weights stay as they are.

    Args:
        path: A checkpoint.
        output: Where it goes; may be the same file.
        aggregation, ood, distance_limit: See `CheckpointHeader`.

    Returns:
        The hash of the new file.

    Raises:
        CheckpointError: as `read_header`.
        OutputError: the file cannot be written.
    """
    header = read_header(path).model_copy(
        update={"aggregation": aggregation, "distance_limit": distance_limit}
    )
    tensors = {name: value for name, value in load_file(path).items() if not name.startswith(_OOD_PREFIX)}
    for name in _OOD_PARTS:
        tensors[_OOD_PREFIX + name] = torch.from_numpy(getattr(ood, name)).contiguous()
    with atomic_file(output) as temporary:
        save_file(tensors, temporary, metadata={HEADER_KEY: header.model_dump_json()})
        return hash_checkpoint(temporary)


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
    state = load_file(path)
    extra = {
        name.removeprefix(_OOD_PREFIX): state.pop(name)
        for name in list(state)
        if name.startswith(_OOD_PREFIX)
    }
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"the tensors do not fit {header.spec.backbone} as the header describes it",
            where=str(path),
            fix=FIX_DAMAGED,
        ) from error
    ood = OodDetector(**{name: value.numpy() for name, value in extra.items()}) if extra else None
    model = model.to(memory_format=torch.channels_last).eval()
    return Checkpoint(model, header, hash_checkpoint(path), ood)
