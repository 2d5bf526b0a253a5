"""Training speed: (a) the network alone, (b) cspine's pipeline, (c) what a user would write with torchvision.

    python benchmarks/train.py --repeats 5 -o train.json

All three train `experiments/paper.toml` on a drawn phantom of 224x224 pixels, from the same random weights, with the
same rate and batch. (a) is the training step of (b) on one batch that lies in memory. (c) is `ImageFolder`, PIL
transforms, `DataLoader` with two workers, Adam and fp32, as tutorials write it. On a GPU, give `--batch-size 256` too:
the batch at which throughput is published.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from _measure import MODELS, divide, format_spread, make_parser, save, show, time_in_turns
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from cspine.comparison.prepare import PreparedData, prepare_data
from cspine.comparison.training import train_model
from cspine.core.machine import count_cpus, hold_memory
from cspine.core.progress import Silent
from cspine.experiment import Experiment, read_experiment
from cspine.models.classifier import build_classifier
from cspine.models.weights import load_weights
from cspine.phantom.dataset import write_phantom
from cspine.phantom.patient import PhantomSettings
from cspine.training.execution import choose_precision
from cspine.training.step import Stepper, find_device, make_optimizer

PAPER = Path(__file__).parents[1] / "experiments/paper.toml"
SIZE_PX, WARM_UP = 224, 2
WAYS = ("ceiling", "cspine", "plain")


def draw_phantom(folder: Path, slices: int) -> None:
    """A set whose train split has more than so many slices, half of each class."""
    patients = max(20, round(1.3 * slices / 6))
    write_phantom(folder, PhantomSettings(patients, 10, fracture_fraction=0.8, size_px=SIZE_PX))


def take_slices(prepared: PreparedData, count: int) -> PreparedData:
    """The same data with `count` training slices, half of each class."""
    train = prepared.table(prepared.train)
    halves = [train.filter(train["label"] == label).head((count + label) // 2) for label in (0, 1)]
    chosen = [slice_id for half in halves for slice_id in half["slice_id"]]
    assert len(chosen) == count, "the phantom is too small"
    table = prepared.manifest.table
    kept = table.filter((table["split"] != prepared.train) | table["slice_id"].is_in(chosen))
    return replace(prepared, manifest=prepared.manifest.with_table(kept))


def time_pipeline(
    experiment: Experiment, name: str, prepared: PreparedData, precision: str, folder: Path
) -> float:
    """(b): slices a second of the second epoch of `cspine train`, its validation not counted."""
    fixed = {"epochs": 2, "precision": precision, "early_stopping_patience": 0}
    settings = experiment.models[name]
    chosen = settings.model_copy(update={"training": {**settings.training, **fixed}})
    one = experiment.model_copy(update={"models": {name: chosen}})
    with tempfile.TemporaryDirectory() as run:
        trained = train_model(one, name, prepared, Path(run), folder / "cache", Silent(), resume=False)
    return trained.outcome.history[-1].slices_per_s


@hold_memory()
def time_ceiling(experiment: Experiment, name: str, precision: Any, batches: int) -> float:
    """(a): slices a second of training steps on one batch that lies on the device."""
    settings, spec = experiment.find_training(name), experiment.find_spec(name)
    scale = load_weights("none", spec, channels=experiment.preprocess.channels).scale
    device, count = find_device(), settings.batch_size
    model = build_classifier(spec, scale, seed=0).to(device).to(memory_format=torch.channels_last).train()
    stepper = Stepper(model, make_optimizer(model, settings), settings, precision, device)
    pixels = 255 * torch.rand((count, 1, SIZE_PX, SIZE_PX), device=device)
    for steps in (WARM_UP, batches):
        started = time.perf_counter()
        losses = [stepper.take(model, pixels, pixels.new_ones(count))[1] for _ in range(steps)]
        losses[-1].item()  # waits for a GPU
    return batches * count / (time.perf_counter() - started)


def time_plain(experiment: Experiment, name: str, prepared: PreparedData, folder: Path) -> float:
    """(c): slices a second, from the end of the second batch on, so that the workers' start is not counted."""
    settings, spec, ranges = experiment.find_training(name), experiment.find_spec(name), experiment.augment
    scale = load_weights("none", spec, channels=experiment.preprocess.channels).scale
    steps = [
        transforms.RandomEqualize(p=1.0),
        transforms.Resize((SIZE_PX, SIZE_PX)),
        transforms.RandomHorizontalFlip(ranges.flip_horizontal),
        transforms.RandomAffine(ranges.rotation_deg, scale=(ranges.scale_min, ranges.scale_max)),
        transforms.ToTensor(),
        transforms.Normalize(scale.mean, scale.std),
    ]
    link_classes(prepared, folder)
    batches = DataLoader(
        ImageFolder(str(folder), transforms.Compose(steps)),
        settings.batch_size,
        shuffle=True,
        num_workers=min(2, count_cpus()),
        drop_last=True,
    )
    device = find_device()
    torch.manual_seed(experiment.seed)
    model = timm.create_model(spec.backbone, **{**spec.backbone_options, "num_classes": 2}).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    ends = []
    for images, classes in batches:
        loss = F.cross_entropy(model(images.to(device)), classes.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ends.append(time.perf_counter())
    return settings.batch_size * (len(ends) - WARM_UP) / (ends[-1] - ends[WARM_UP - 1])


def link_classes(prepared: PreparedData, folder: Path) -> None:
    """A folder a class with links to the training files, once."""
    if folder.exists():
        return
    for label, name in enumerate(("normal", "fracture")):
        (folder / name).mkdir(parents=True)
        table = prepared.table(prepared.train)
        for path in table.filter(table["label"] == label)["path"]:
            source = (prepared.manifest.root / path).resolve()
            (folder / name / source.name).symlink_to(source)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder, count = Path(name), options.batches * options.batch_size
        draw_phantom(folder / "phantom", count)
        chosen = ("weights=none", "training.precision=auto")
        fields = [f"models.{model}.{field}" for model in MODELS for field in chosen]
        overrides = [f"data.root={folder / 'phantom'}", f"training.batch_size={options.batch_size}", *fields]
        experiment = read_experiment(PAPER, overrides)
        prepared = take_slices(prepare_data(experiment, Silent()), count)
        for model in options.models:
            spec, settings = experiment.find_spec(model), experiment.find_training(model)
            precision = choose_precision(settings, spec.backbone, find_device()).precision
            ways = {
                "cspine": partial(time_pipeline, experiment, model, prepared, precision, folder),
                "ceiling": partial(time_ceiling, experiment, model, precision, options.batches),
                "plain": partial(time_plain, experiment, model, prepared, folder / "classes"),
            }
            found = time_in_turns(ways, options.repeats)
            ratios = [format_spread(divide(found["cspine"], found[way])) for way in ("ceiling", "plain")]
            rows.append((model, precision, *(format_spread(found[way]) for way in WAYS), *ratios))
            figures[model] = found
    show(("model", "precision", *(f"{way}, slices/s" for way in WAYS), "b/a", "b/c"), rows)
    save(options.output, {"batch_size": options.batch_size, "slices_per_s": figures})


if __name__ == "__main__":
    main()
