"""The training loop: read it from `train` downwards; the rest is what it calls, in that order."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cspine.core.errors import TrainingError
from cspine.core.files import explain_os_error
from cspine.core.machine import hold_memory
from cspine.data.cache import SliceCache
from cspine.experiment import AugmentSettings, TrainingSettings
from cspine.models.checkpoint import write_checkpoint
from cspine.models.classifier import FractureClassifier
from cspine.models.header import CheckpointHeader
from cspine.training.batches import BatchPlan, Cases, Source, open_sources
from cspine.training.execution import Execution, choose_execution, open_compiled
from cspine.training.state import (
    EpochRecord,
    Outcome,
    Progress,
    RunState,
    read_execution,
    read_outcome,
    read_state,
    write_history,
    write_outcome,
    write_state,
)
from cspine.training.step import Network, Stepper, find_device, make_optimizer, set_learning_rate

READ_PAUSE_S = {"cpu": 0.0, "cuda": 2.0}
"""Seconds between two readings within an epoch, by device: for each, the host waits for the steps that a GPU is at."""


class Tally:
    """What the steps of an epoch gave. It stays on the device until it is read.

    Attributes:
        count: Slices that were added.
        losses: The mean loss of each batch, of those that were read.
    """

    def __init__(self, plans: Sequence[BatchPlan], device: torch.device) -> None:
        self.count = 0
        self.losses: list[float] = []
        self._sizes = [len(plan) for plan in plans]
        self._kept = torch.zeros((len(plans), 2), device=device)  # loss, number right
        self._added = 0
        self._loss_sum, self._right, self._counted = 0.0, 0.0, 0
        self._pause_s = READ_PAUSE_S.get(device.type, 2.0)
        self._started_s = time.perf_counter()
        self._read_s = -math.inf

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Count the next batch; nothing waits for its values."""
        right = ((logits.detach() >= 0) == (labels > 0.5)).sum()
        self._kept[self._added] = torch.stack((loss.detach(), right.to(loss.dtype)))
        self.count += self._sizes[self._added]
        self._added += 1

    def read_if_due(self) -> None:
        """Read, unless that was done on a GPU a moment ago."""
        if time.perf_counter() - self._read_s >= self._pause_s:
            self.read()
            self._read_s = time.perf_counter()

    def read(self) -> None:
        """Bring over what was added since the last time."""
        for loss, right in self._kept[len(self.losses) : self._added].tolist():
            size = self._sizes[len(self.losses)]
            self.losses.append(loss)
            self._loss_sum += loss * size
            self._right += right
            self._counted += size

    @property
    def mean_loss(self) -> float:
        """Mean binary cross-entropy a slice, of what was read."""
        return self._loss_sum / max(self._counted, 1)

    @property
    def accuracy(self) -> float:
        """Fraction right at probability 0.5, of what was read."""
        return self._right / max(self._counted, 1)

    def describe(self, epoch: int, epochs: int) -> Progress:
        """What a progress bar shows."""
        speed = self.count / max(time.perf_counter() - self._started_s, 1e-9)
        return Progress(epoch, epochs, self._added, len(self._sizes), self.mean_loss, self.accuracy, speed)


DIVERGED_LOSS = 20.0
"""A mean training loss above this is divergence: calling every slice wrong at 99.99% certainty costs 9.2."""


@dataclass(frozen=True)
class TrainingPlan:
    """A model and how it is trained.

    Attributes:
        model: With its starting weights.
        header: Goes into the checkpoint; the epoch and the settings are filled in by the training.
        settings: Of the training.
        augment: Random changes of the training batches.
        seed: Of the order, the augmentation and drop-out.
        fingerprint: Identifies everything that the result depends on.
    """

    model: FractureClassifier
    header: CheckpointHeader
    settings: TrainingSettings
    augment: AugmentSettings
    seed: int
    fingerprint: str


@hold_memory()
def train(
    plan: TrainingPlan,
    cache: SliceCache,
    cases: Cases,
    selection: Cases,
    folder: Path,
    *,
    on_execution: Callable[[Execution], None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Train a model and keep its best epoch, by the mean loss on `selection`, as `folder`/checkpoint.safetensors.

    Runs on one CPU or one GPU (Lightning Fabric). Everything random depends on (seed, epoch) alone, so a run that was
    killed is resumed from its last whole epoch and ends in the same bits as one that was not (on one CPU machine).
    Beside the checkpoint lie `history.parquet`, `state.pt`, `events/` (TensorBoard) and, at the end, `outcome.json`.

    Args:
        plan: What is trained, and how.
        cache: The pixels of both sets of cases.
        cases: What to learn from.
        selection: What the schedule, early stopping and the choice of the best epoch watch.
        folder: An unfinished run of the same fingerprint in it is resumed; a finished one is returned as it is.
        on_execution: Called before the first epoch of this call.
        on_step: Called after every batch.

    Raises:
        TrainingError: the loss is not finite, or diverged; names the slices of the batch.
        OutputError: the folder cannot be written.
    """
    settings, fingerprint = plan.settings, plan.fingerprint
    if (outcome := read_outcome(folder, fingerprint)) is not None:
        return outcome
    make_folder(folder)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its notes would break the progress bar
    device = find_device()
    model = plan.model.to(device).to(memory_format=torch.channels_last)
    learner = model.head if settings.backbone == "frozen" else model
    execution = read_execution(folder, fingerprint) or choose_execution(
        settings, model.spec.backbone, device, settings.epochs * len(cases)
    )
    if on_execution:
        on_execution(execution)
    precision = execution.precision.precision
    stepper = Stepper(learner, make_optimizer(learner, settings), settings, precision, device)
    plateau = make_plateau(stepper.optimizer.optimizer, settings)
    state = read_state(folder, fingerprint, model, stepper.optimizer, plateau)
    source, watched = open_sources(model, cache, (cases, selection), settings, device)
    compiling = open_compiled(learner) if execution.compiling.compiled else contextlib.nullcontext(learner)
    with contextlib.closing(open_events(folder, state.epoch)) as events, compiling as fast:
        run = Run(
            plan=plan,
            learner=learner,
            fast=fast,
            stepper=stepper,
            plateau=plateau,
            source=source,
            watched=watched,
            loss_weights=make_class_weights(cases.labels, settings).to(device),
            on_step=on_step,
        )
        while not is_finished(state, settings):
            record = run_epoch(run, state)
            state = advance_state(state, record, float(stepper.optimizer.param_groups[0]["lr"]), settings)
            if state.best_epoch == record.epoch:
                header = fill_header(plan, state, execution)
                write_checkpoint(folder / "checkpoint.safetensors", model, header)
            write_events(events, record)
            write_history(folder, state.history)
            write_state(folder, fingerprint, state, model, stepper.optimizer, plateau, execution)
    if state.best_epoch == 0:
        raise TrainingError(
            f"the loss on the selection set was never finite in {state.epoch} epochs",
            where=str(folder),
            fix="lower training.learning_rate, or use precision fp32",
        )
    return write_outcome(folder, fingerprint, state, settings, execution)


@dataclass(frozen=True)
class Run:
    """What stays the same from epoch to epoch.

    Attributes:
        learner: The module that learns: the model, or its head.
        fast: The learner compiled, for batches of the full size; itself where it is not.
        loss_weights: (2,) by label.
    """

    plan: TrainingPlan
    learner: nn.Module
    fast: Network
    stepper: Stepper
    plateau: torch.optim.lr_scheduler.ReduceLROnPlateau
    source: Source
    watched: Source
    loss_weights: Tensor
    on_step: Callable[[Progress], None] | None


def run_epoch(run: Run, state: RunState) -> EpochRecord:
    """Learn for one more epoch, look at the selection set, and set the plateau's rate."""
    epoch, settings, optimizer = state.epoch + 1, run.plan.settings, run.stepper.optimizer
    started = time.perf_counter()
    tally = learn_epoch(run, epoch, state.learning_rate)
    trained_s = time.perf_counter() - started
    with run.stepper.fabric.autocast():
        val_loss, val_accuracy = compute_loss(run.learner, run.watched, settings.batch_size)
    record = EpochRecord(
        epoch=epoch,
        train_loss=tally.mean_loss,
        train_accuracy=tally.accuracy,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        learning_rate=float(optimizer.param_groups[0]["lr"]),
        seconds=time.perf_counter() - started,
        slices_per_s=tally.count / trained_s,
    )
    if settings.schedule == "plateau" and epoch > settings.warmup_epochs:
        optimizer.param_groups[0]["lr"] = state.learning_rate
        run.plateau.step(val_loss)
    return record


def learn_epoch(run: Run, epoch: int, learning_rate: float) -> Tally:
    """All batches of an epoch, each a step; `learning_rate` is the plateau's.

    Raises:
        TrainingError: the loss is not finite, or diverged.
    """
    settings, source = run.plan.settings, run.source
    seed = run.plan.seed * 1_000_003 + epoch
    torch.manual_seed(seed)  # drop-out and stochastic depth draw from the global state
    generator = torch.Generator().manual_seed(seed)
    plans = source.plan_epoch(settings.batch_size, run.plan.augment, generator)
    tally = Tally(plans, run.loss_weights.device)
    run.learner.train()
    for number, plan in enumerate(plans):
        inputs, labels = source.read(plan)
        set_learning_rate(run.stepper.optimizer, settings, epoch - 1 + number / len(plans), learning_rate)
        network = run.fast if len(plan) == settings.batch_size else run.learner
        logits, loss = run.stepper.take(network, inputs, labels, run.loss_weights[labels.long()])
        tally.add(logits, labels, loss)
        tally.read_if_due()
        stop_if_not_finite(tally, source, plans, epoch)
        if run.on_step:
            run.on_step(tally.describe(epoch, settings.epochs))
    tally.read()
    stop_if_not_finite(tally, source, plans, epoch)
    if tally.mean_loss > DIVERGED_LOSS:
        stop_diverged(tally, source, plans, epoch)
    return tally


def make_folder(folder: Path) -> None:
    """Make the run's folder; raise `OutputError` where that cannot be done."""
    try:
        (folder / "events").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, folder) from error


def make_plateau(
    optimizer: torch.optim.Optimizer, settings: TrainingSettings
) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    """The adaptive schedule, which only a "plateau" follows."""
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        factor=settings.plateau_factor,
        patience=settings.plateau_patience,
        threshold=settings.early_stopping_min_delta,
        threshold_mode="abs",
    )


def make_class_weights(labels: Tensor, settings: TrainingSettings) -> Tensor:
    """(2,) weights of the loss by label: ones, or the inverse frequency with a mean of one over the slices."""
    if settings.class_weights == "none":
        return torch.ones(2)
    counts = torch.bincount(labels.long(), minlength=2)
    return len(labels) / (2.0 * counts)


def open_events(folder: Path, epoch: int) -> Any:
    """A TensorBoard writer that drops what an interrupted epoch had written."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "events"), purge_step=epoch + 1)


def write_events(events: Any, record: EpochRecord) -> None:
    """One point an epoch for each column of the history."""
    for name, value in record.model_dump(exclude={"epoch"}).items():
        events.add_scalar(name, value, record.epoch)
    events.flush()


def is_finished(state: RunState, settings: TrainingSettings) -> bool:
    """All epochs are done, or early stopping has waited long enough for a fall of more than its min_delta."""
    patience, counted_epoch, counted_loss = settings.early_stopping_patience, 0, math.inf
    for record in state.history:
        if record.val_loss < counted_loss - settings.early_stopping_min_delta:  # never so for NaN
            counted_epoch, counted_loss = record.epoch, record.val_loss
    return state.epoch >= settings.epochs or (0 < patience <= state.epoch - counted_epoch)


def stop_if_not_finite(tally: Tally, source: Source, plans: Sequence[BatchPlan], epoch: int) -> None:
    """Raise `TrainingError` with the batch's slices when the loss of one that was read is NaN or infinite."""
    if math.isfinite(tally.mean_loss):
        return
    step, loss = next((step, loss) for step, loss in enumerate(tally.losses) if not math.isfinite(loss))
    raise TrainingError(
        f"the training loss is {loss} in epoch {epoch}, batch {step + 1}",
        where=f"slices {name_some(source.name_slices(plans[step]))}",
        fix="lower training.learning_rate, set training.gradient_clip, or use precision fp32; look at these slices",
    )


def stop_diverged(tally: Tally, source: Source, plans: Sequence[BatchPlan], epoch: int) -> None:
    """Raise `TrainingError` for a finite loss that no useful training has; names the slices of the worst batch."""
    worst = max(range(len(plans)), key=tally.losses.__getitem__)
    raise TrainingError(
        f"training diverged: the mean loss of epoch {epoch} is {tally.mean_loss:.1f}, that of its worst batch "
        f"{tally.losses[worst]:.1f}",
        where=f"slices {name_some(source.name_slices(plans[worst]))}",
        fix="lower training.learning_rate, set training.gradient_clip, or raise training.warmup_epochs",
    )


def name_some(slice_ids: tuple[str, ...]) -> str:
    """The first few slices of a batch, for a message."""
    return ", ".join(slice_ids[:4]) + (", ..." if len(slice_ids) > 4 else "")


@torch.no_grad()
def compute_loss(model: nn.Module, source: Source, batch_size: int) -> tuple[float, float]:
    """Mean unweighted loss and accuracy on the cases of a source, in evaluation mode."""
    model.eval()
    plans = source.plan_in_order(4 * batch_size)
    tally = Tally(plans, source.labels.device)
    for plan in plans:
        inputs, labels = source.read(plan)
        logits = model(inputs).float()
        tally.add(logits, labels, F.binary_cross_entropy_with_logits(logits, labels))
    tally.read()
    return tally.mean_loss, tally.accuracy


def advance_state(
    state: RunState, record: EpochRecord, learning_rate: float, settings: TrainingSettings
) -> RunState:
    """The state after one more epoch; a loss that is not finite is never the best."""
    better = math.isfinite(record.val_loss) and record.val_loss < state.best_loss
    keep_rate = settings.schedule != "plateau" or record.epoch <= settings.warmup_epochs
    return RunState(
        epoch=record.epoch,
        best_epoch=record.epoch if better else state.best_epoch,
        best_loss=record.val_loss if better else state.best_loss,
        learning_rate=settings.learning_rate if keep_rate else learning_rate,
        history=(*state.history, record),
    )


def fill_header(plan: TrainingPlan, state: RunState, execution: Execution) -> CheckpointHeader:
    """The header with what is known once an epoch is done."""
    precision, compiling = execution.precision, execution.compiling
    training = {
        **plan.settings.model_dump(),
        "seed": plan.seed,
        "best_epoch": state.best_epoch,
        "best_loss": state.best_loss,
        "precision_why": precision.why,
        "compiled": compiling.compiled,
        "compile_why": compiling.why,
    }
    return plan.header.model_copy(update={"training": training, "precision": precision.precision})
