"""What a training leaves on disk besides its checkpoint: state to go on from, history, outcome."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, Field

from cspine.core.errors import InputError
from cspine.core.files import atomic_file, write_parquet, write_text
from cspine.experiment import TrainingSettings
from cspine.models.classifier import FractureClassifier
from cspine.training.execution import CompileChoice, Execution, PrecisionChoice


class EpochRecord(BaseModel):
    """One row of a history. Losses are mean binary cross-entropies, accuracies fractions; val is the selection set."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float
    slices_per_s: float


class RunState(BaseModel):
    """Where a run stands after `epoch` epochs; `learning_rate` is the plateau schedule's."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf
    learning_rate: float
    history: tuple[EpochRecord, ...] = ()


class Outcome(BaseModel):
    """How a finished training went. `precision` and `compiling` are None where an earlier version did not keep them."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    fingerprint: str
    best_epoch: int = Field(ge=1)
    stopped_early: bool
    precision: PrecisionChoice | None = None
    compiling: CompileChoice | None = None
    history: tuple[EpochRecord, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training stands within an epoch."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    slices_per_s: float


def is_started(folder: Path) -> bool:
    """Whether a folder holds an unfinished or finished training."""
    return (folder / "state.pt").exists() or (folder / "outcome.json").exists()


def write_state(
    folder: Path,
    fingerprint: str,
    state: RunState,
    model: FractureClassifier,
    optimizer: Any,
    plateau: Any,
    execution: Execution,
) -> None:
    """Write everything that the next epoch depends on, atomically."""
    content = {
        "fingerprint": fingerprint,
        "state": state.model_dump_json(),
        "choices": execution.model_dump_json(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "plateau": plateau.state_dict(),
    }
    buffer = io.BytesIO()  # torch's own writer hides what the system said, such as that the disk is full
    torch.save(content, buffer)
    with atomic_file(folder / "state.pt") as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_execution(folder: Path, fingerprint: str) -> Execution | None:
    """Read what an unfinished run chose for the machine; None where there is none.

    Raises:
        InputError: as for `read_state`.
    """
    content = _read_content(folder, fingerprint)
    if content is None or "choices" not in content:
        return None
    return Execution.model_validate_json(content["choices"])


def read_state(
    folder: Path, fingerprint: str, model: FractureClassifier, optimizer: Any, plateau: Any
) -> RunState:
    """Load an unfinished run into model, optimizer and schedule; a fresh state where there is none.

    Raises:
        InputError: the folder holds a run of other settings or data, or its state is damaged.
    """
    content = _read_content(folder, fingerprint)
    if content is None:
        return RunState(learning_rate=float(optimizer.param_groups[0]["lr"]))
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    plateau.load_state_dict(content["plateau"])
    return RunState.model_validate_json(content["state"])


def _read_content(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    path = folder / "state.pt"
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        same = content["fingerprint"] == fingerprint
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise InputError(
            f"the state of the run is damaged ({type(error).__name__})",
            where=str(path),
            fix="remove this folder",
        ) from error
    if not same:
        _refuse_other_run(folder)
    return content


def check_fingerprint(folder: Path, fingerprint: str) -> None:
    """Refuse to go on with a run of other settings, before anything is written.

    Raises:
        InputError: the folder holds a run of other settings or data, or what it holds is damaged.
    """
    if read_outcome(folder, fingerprint) is None:
        _read_content(folder, fingerprint)


def write_outcome(
    folder: Path,
    fingerprint: str,
    state: RunState,
    settings: TrainingSettings,
    execution: Execution,
) -> Outcome:
    """Mark the run as finished; the state is no longer needed."""
    outcome = Outcome(
        fingerprint=fingerprint,
        best_epoch=state.best_epoch,
        stopped_early=state.epoch < settings.epochs,
        precision=execution.precision,
        compiling=execution.compiling,
        history=state.history,
    )
    write_text(folder / "outcome.json", outcome.model_dump_json(indent=2) + "\n")
    (folder / "state.pt").unlink(missing_ok=True)
    return outcome


def read_outcome(folder: Path, fingerprint: str) -> Outcome | None:
    """The outcome of a finished run, or None where it is not finished.

    Raises:
        InputError: the folder holds a run of other settings or data.
    """
    path = folder / "outcome.json"
    if not path.exists():
        return None
    try:
        outcome = Outcome.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            "the outcome of the run is damaged", where=str(path), fix="remove this folder"
        ) from error
    if outcome.fingerprint != fingerprint or not (folder / "checkpoint.safetensors").exists():
        _refuse_other_run(folder)
    return outcome


def _refuse_other_run(folder: Path) -> None:
    raise InputError(
        "the folder holds a training of other settings, data or weights",
        where=str(folder),
        fix="name another output folder, or undo the change to go on",
    )


def write_history(folder: Path, history: tuple[EpochRecord, ...]) -> None:
    """Write the history as parquet, one row an epoch."""
    write_parquet(folder / "history.parquet", pl.DataFrame([record.model_dump() for record in history]))
