"""Training speed: (a) the machine's ceiling, (b) cspine's whole pipeline, (c) what a user would write with torchvision.

All three train the same network from the same weights, with the same rate and batch. (a) is the training step of (b) on
one batch that lies in memory: nothing that (b) does beside the network can be faster than not doing it. Both hold freed
memory (`machine.hold_memory`). (c) is `ImageFolder`, PIL transforms, `DataLoader` with two workers, Adam and fp32, as
tutorials write it.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from cspine.bench.results import Rates, describe_run
from cspine.bench.training_results import CEILING, PIPELINE, PLAIN, TrainingBench, TrainingSpeed
from cspine.comparison.prepare import PreparedData, prepare_data
from cspine.comparison.training import train_model
from cspine.core.errors import InputError
from cspine.core.machine import count_cpus, hold_memory
from cspine.core.progress import Silent, Watcher
from cspine.experiment import Experiment, TrainingSettings
from cspine.metrics.intervals import estimate_wilson
from cspine.models.classifier import FractureClassifier, build_classifier
from cspine.models.header import Precision
from cspine.models.weights import LoadedWeights, apply_weights, load_weights
from cspine.training.speed import WARM_UP_STEPS, Probe, choose_precision, open_compiled
from cspine.training.state import EpochRecord
from cspine.training.step import find_device

WORKERS = 2
"""Of the plain way's `DataLoader`."""

WARM_UP = 2
"""Steps before the clock starts, in (a) and (c); (b) counts its second epoch."""

_FOLDERS = ("normal", "fracture")


@dataclass(frozen=True)
class _Case:
    """One model of the experiment with the weights that all ways start from."""

    experiment: Experiment
    name: str
    loaded: LoadedWeights
    prepared: PreparedData
    folder: Path


def measure_training(
    experiment: Experiment,
    *,
    batches: int,
    repeats: int,
    epochs: int = 0,
    command: str = "",
    watcher: Watcher | None = None,
) -> TrainingBench:
    """Measure every model of an experiment, the three ways in turns.

    Args:
        experiment: Its data, recipe, augmentation and training settings are used; nothing of it is changed.
        batches: A repeat of each way, 3 at least.
        repeats: Rounds of all three ways.
        epochs: Also train (b) and (c) on the whole train split for so many, and compare their accuracy on the
            selection split; 0 leaves that out.
        command: For the record.
        watcher: Is told how far it is.

    Raises:
        InputError: the train split holds fewer slices than `batches` batches.
    """
    watcher = watcher or Silent()
    prepared = prepare_data(experiment, watcher)
    speeds = []
    with tempfile.TemporaryDirectory(prefix="cspine-bench-") as folder:
        for name in experiment.models:
            loaded = load_weights(
                experiment.models[name].weights,
                experiment.find_spec(name),
                channels=experiment.preprocess.channels,
            )
            few = take_slices(prepared, batches * experiment.find_training(name).batch_size)
            case = _Case(experiment, name, loaded, few, Path(folder) / name)
            speed = measure_model(case, batches, repeats, watcher)
            if epochs:
                whole = replace(case, prepared=prepared, folder=Path(folder) / f"{name}-whole")
                speed = compare_accuracy(speed, whole, epochs, watcher)
            speeds.append(speed)
    size = experiment.preprocess.image_size_px
    return TrainingBench(
        **describe_run(command).model_dump(),
        size_px=(size, size),
        batch_size={name: experiment.find_training(name).batch_size for name in experiment.models},
        batches=batches,
        models=tuple(speeds),
    )


def take_slices(prepared: PreparedData, count: int) -> PreparedData:
    """The same data with `count` training slices, half of each class.

    Raises:
        InputError: there are not so many.
    """
    train = prepared.table(prepared.train)
    halves = [train.filter(train["label"] == label).head((count + label) // 2) for label in (0, 1)]
    if sum(map(len, halves)) < count:
        raise InputError(
            f"the train split has {', '.join(str(len(half)) for half in halves)} normal and fracture slices of the "
            f"{count} that are needed, half of each",
            where=f"split {prepared.train}",
            fix="measure fewer batches, or give more data",
        )
    chosen = {slice_id for half in halves for slice_id in half["slice_id"]}
    table = prepared.manifest.table
    kept = table.filter((table["split"] != prepared.train) | table["slice_id"].is_in(list(chosen)))
    return replace(prepared, manifest=prepared.manifest.with_table(kept))


def measure_model(case: _Case, batches: int, repeats: int, watcher: Watcher) -> TrainingSpeed:
    """(b), (a), (c), and again, `repeats` times."""
    size = case.experiment.preprocess.image_size_px
    settings = case.experiment.find_training(case.name)
    model = build_classifier(case.experiment.find_spec(case.name), case.loaded.scale, seed=0)
    choice = choose_precision(model, settings, (size, size), find_device())
    rates: dict[str, list[float]] = {CEILING: [], PIPELINE: [], PLAIN: []}
    watcher.start(f"Measuring {case.name}", repeats)
    for number in range(repeats):
        done = replace(case, folder=case.folder / str(number))
        rates[PIPELINE].append(train_pipeline(done, choice.precision).slices_per_s)
        rates[CEILING].append(time_ceiling(case, choice.precision, batches))
        rates[PLAIN].append(time_plain(case, batches))
        watcher.advance(
            number + 1, repeats, ", ".join(f"{way} {values[-1]:.3g}/s" for way, values in rates.items())
        )
    watcher.finish(f"{choice.precision}: {choice.why}")
    return TrainingSpeed(
        model=case.name,
        precision=choice.precision,
        why=choice.why,
        rates={way: Rates(slices_per_s=tuple(values)) for way, values in rates.items()},
    )


def train_pipeline(case: _Case, precision: str, epochs: int = 2) -> EpochRecord:
    """(b): train as `cspine train` does, for so many epochs whatever the validation says; the last one's record.

    Its slices a second do not count the validation.
    """
    compiling = "on" if case.experiment.find_training(case.name).compile == "on" else "off"
    fixed = {
        "epochs": epochs,
        "precision": precision,
        "early_stopping_patience": 0,
        "compile": compiling,
    }
    settings = case.experiment.models[case.name]
    chosen = settings.model_copy(update={"training": {**settings.training, **fixed}})
    experiment = case.experiment.model_copy(update={"models": {case.name: chosen}})
    trained = train_model(
        experiment,
        case.name,
        case.prepared,
        case.folder,
        case.folder.parent / "cache",
        Silent(),
        resume=False,
    )
    return trained.outcome.history[-1]


def time_ceiling(case: _Case, precision: Precision, batches: int) -> float:
    """(a): `time_steps` from the case's weights."""
    settings, spec = case.experiment.find_training(case.name), case.experiment.find_spec(case.name)
    model = build_classifier(spec, case.loaded.scale, seed=case.experiment.seed)
    apply_weights(model.backbone, case.loaded, spec)
    size = case.experiment.preprocess.image_size_px
    return time_steps(model, settings, size, precision, batches, settings.compile == "on")


@hold_memory()
def time_steps(
    model: FractureClassifier,
    settings: TrainingSettings,
    size_px: int,
    precision: Precision,
    batches: int,
    compiled: bool = False,
) -> float:
    """Slices a second of training steps on one batch that lies on the device."""
    probe = Probe(model, settings, (size_px, size_px), find_device(), time.perf_counter)
    opened = open_compiled(probe.network) if compiled else contextlib.nullcontext(probe.network)
    with opened as network:
        probe.step(
            precision, settings.batch_size, network=network, steps=WARM_UP_STEPS if compiled else WARM_UP
        )
        return probe.step(precision, settings.batch_size, network=network, steps=batches)


def wait_for(device: torch.device) -> None:
    """Return when a GPU has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PlainTraining:
    """(c): a timm network with two outputs, trained as tutorials do, from the same weights as (a) and (b).

    Its classes are numbered by the names of their folders, as `ImageFolder` does it.
    """

    fracture_class = sorted(_FOLDERS).index("fracture")

    def __init__(self, case: _Case) -> None:
        spec = case.experiment.find_spec(case.name)
        self.case = case
        self.settings = case.experiment.find_training(case.name)
        torch.manual_seed(case.experiment.seed)
        options: dict[str, Any] = {**spec.backbone_options, "num_classes": 2}
        self.model = timm.create_model(spec.backbone, **options)
        if case.loaded.state is not None:
            self.model.load_state_dict(case.loaded.state, strict=False)
        self.device = find_device()
        self.model.to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.settings.learning_rate)

    def load(self, split: str, *, augment: bool) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of a split, from files in class folders."""
        folder = link_classes(
            self.case.prepared, split, self.case.folder.parent / f"{self.case.folder.name}-{split}"
        )
        size, ranges = self.case.experiment.preprocess.image_size_px, self.case.experiment.augment
        scale = self.case.loaded.scale
        steps: list[object] = [transforms.RandomEqualize(p=1.0), transforms.Resize((size, size))]
        if augment:
            steps += [
                transforms.RandomHorizontalFlip(ranges.flip_horizontal),
                transforms.RandomAffine(ranges.rotation_deg, scale=(ranges.scale_min, ranges.scale_max)),
            ]
        steps += [transforms.ToTensor(), transforms.Normalize(scale.mean, scale.std)]
        data = ImageFolder(str(folder), transforms.Compose(steps))
        return DataLoader(
            data,
            self.settings.batch_size,
            shuffle=augment,
            num_workers=min(WORKERS, count_cpus()),
            drop_last=augment,
        )

    def train_epoch(self, batches: DataLoader[tuple[Tensor, Tensor]]) -> Iterator[int]:
        """Yield the number of slices of each batch, once it is learned from."""
        self.model.train()
        for images, classes in batches:
            loss = F.cross_entropy(self.model(images.to(self.device)), classes.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            yield len(classes)

    @torch.no_grad()
    def count_right(self, batches: DataLoader[tuple[Tensor, Tensor]]) -> tuple[int, int]:
        """Slices that are called right, and all."""
        self.model.eval()
        right = [self.model(images.to(self.device)).argmax(1).cpu() == classes for images, classes in batches]
        joined = torch.cat(right)
        return int(joined.sum()), len(joined)


def time_plain(case: _Case, batches: int) -> float:
    """(c): slices a second, from the end of the second batch on, as the start of the workers is not counted."""
    plain = PlainTraining(case)
    counts, ends = [], []
    for count in plain.train_epoch(plain.load(case.prepared.train, augment=True)):
        wait_for(plain.device)
        counts.append(count)
        ends.append(time.perf_counter())
    return sum(counts[WARM_UP:batches]) / (ends[-1] - ends[WARM_UP - 1])


def link_classes(prepared: PreparedData, split: str, folder: Path) -> Path:
    """A folder a class with links to the files of a split, once."""
    if folder.exists():
        return folder
    for label, name in enumerate(_FOLDERS):
        (folder / name).mkdir(parents=True)
        table = prepared.table(split)
        for number, path in enumerate(table.filter(table["label"] == label)["path"]):
            source = (prepared.manifest.root / path).resolve()
            (folder / name / f"{number:06}{source.suffix}").symlink_to(source)
    return folder


def compare_accuracy(speed: TrainingSpeed, case: _Case, epochs: int, watcher: Watcher) -> TrainingSpeed:
    """Add the accuracy of (b) and (c) on the selection split after `epochs` epochs over the whole train split."""
    watcher.start(f"Training {case.name} both ways", 2 * epochs)
    count = len(case.prepared.table(case.prepared.selection))
    ours = train_pipeline(case, speed.precision, epochs).val_accuracy
    plain = PlainTraining(case)
    for epoch in range(epochs):
        watcher.advance(epochs + epoch, 2 * epochs)
        for _ in plain.train_epoch(plain.load(case.prepared.train, augment=True)):
            pass
    right, all_of_them = plain.count_right(plain.load(case.prepared.selection, augment=False))
    accuracy = {
        PIPELINE: estimate_wilson(round(ours * count), count),
        PLAIN: estimate_wilson(right, all_of_them),
    }
    watcher.finish(", ".join(f"{way} {value.value:.4f}" for way, value in accuracy.items()))
    return speed.model_copy(update={"accuracy": accuracy, "epochs": epochs})
