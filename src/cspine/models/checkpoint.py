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

from cspine.errors import CheckpointError, InputError
from cspine.files import atomic_file
from cspine.models.classifier import FractureClassifier, build_classifier
from cspine.models.header import (
    FIX_DAMAGED,
    HEADER_KEY,
    Calibration,
    CheckpointHeader,
    hash_checkpoint,
    read_header,
)

_LENGTH_BYTES = 8  # a safetensors file begins with the length of its JSON header


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
            fix=FIX_DAMAGED,
        ) from error
    return Checkpoint(model.to(memory_format=torch.channels_last).eval(), header, hash_checkpoint(path))
