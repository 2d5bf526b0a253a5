"""The experiment file: TOML to frozen, validated settings. An unknown key is an error, never ignored.

Every field can be overridden on the command line: `--set training.epochs=3 --set models.resnet50.weights=none`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cspine.core.errors import ExperimentError
from cspine.models.header import HeadKind, ModelSpec, resolve_spec
from cspine.preprocess import (
    CropBody,
    Equalise,
    Neighbours,
    PixelStep,
    Recipe,
    Resize,
    Scale,
    Window,
    Windows,
)
from cspine.robustness.corruptions import CORRUPTIONS, SEVERITIES


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


class DataSettings(_Settings):
    """Where the labelled slices are. `root` is a folder, a labels table or a manifest."""

    root: str = ""
    layout: Literal["auto", "class-folders", "labels-table", "manifest"] = "auto"
    positive_class: str = "fracture"
    negative_class: str = "normal"
    strict: bool = False


class SplitSettings(_Settings):
    """Which slices are used for what.

    Attributes:
        train: The split to learn from.
        selection: The split that the schedule, early stopping and the choice of the best epoch watch. "carve" takes a
            grouped part out of `train`; "auto" is "val" where another split is reported, else "carve".
        reported: The split whose numbers are reported. "auto" is "test" where there is one, else "val".
        carve_fraction: How much of `train` "carve" takes.
        group_by: What stays together when carving; "auto" is the patient, else series, else source slice.
    """

    train: str = "train"
    selection: str = "auto"
    reported: str = "auto"
    carve_fraction: float = Field(default=0.15, gt=0, lt=1)
    group_by: Literal["auto", "patient_id", "study_uid", "series_uid", "source_id", "slice_id"] = "auto"


class PreprocessSettings(_Settings):
    """The recipe's pixel steps, in this order, and the scaling. The first four are for slices in Hounsfield units.

    Attributes:
        neighbours: The slices above and below as further channels.
        crop_body: A square of so many mm about the body; resized, every slice has the same pixel size.
        window, windows: From HU to 0..255, through one window or through several, each a channel.
        scale: "auto" is x / 255 (paper eq. 1) for random weights, and then the mean and std of pretrained ones;
            "unit" is x / 255 always.
    """

    neighbours: Neighbours | None = None
    crop_body: CropBody | None = None
    window: Window | None = None
    windows: tuple[Window, ...] = ()
    equalise: Equalise = Equalise()
    image_size_px: int = Field(default=224, ge=16, le=4096)
    scale: Literal["auto", "unit"] = "auto"

    @model_validator(mode="after")
    def _steps_fit(self) -> PreprocessSettings:
        if self.window and self.windows:
            raise ValueError("name a window or windows, not both")
        self.make_recipe(Scale(mean=(0.0,) * self.channels, std=(1.0,) * self.channels))
        return self

    @property
    def channels(self) -> int:
        """How many a backbone gets: those that the steps make, or three equal ones."""
        made = (self.neighbours.count if self.neighbours else 1) * max(1, len(self.windows))
        return 3 if made == 1 else made

    @property
    def shown_window(self) -> Window | None:
        """The window to look at slices through; None where there is none."""
        return self.window or next(iter(self.windows), None)

    def make_recipe(self, scale: Scale) -> Recipe:
        """The recipe with these steps, for weights that expect `scale`."""
        steps: list[PixelStep | None] = [self.neighbours, self.crop_body, self.window]
        if self.windows:
            steps.append(Windows(windows=self.windows))
        size = self.image_size_px
        steps += [self.equalise, Resize(height_px=size, width_px=size)]
        if self.scale == "unit":
            scale = Scale(mean=(0.0,) * scale.channels, std=(1.0,) * scale.channels)
        return Recipe(steps=tuple(step for step in steps if step is not None), scale=scale)


Interpolation = Literal["nearest", "bilinear", "bicubic"]


class AugmentSettings(_Settings):
    """Random changes of training batches: rotation, flips and scale, as the paper has them.

    Attributes:
        interpolation: Between the pixels of a slice that is turned or scaled. "bilinear" smooths, and slices that are
            predicted are not smoothed: networks then fail on them where what tells the classes apart is fine.
    """

    enabled: bool = True
    rotation_deg: float = Field(default=15.0, ge=0, le=180)
    scale_min: float = Field(default=0.9, gt=0.1, le=10)
    scale_max: float = Field(default=1.1, gt=0.1, le=10)
    flip_horizontal: float = Field(default=0.5, ge=0, le=1)
    flip_vertical: float = Field(default=0.0, ge=0, le=1)
    interpolation: Interpolation = "nearest"

    @model_validator(mode="after")
    def _ordered(self) -> AugmentSettings:
        if self.scale_min > self.scale_max:
            raise ValueError("scale_min is above scale_max")
        return self


class TrainingSettings(_Settings):
    """How a model is trained. Each model may override any of these in `[models.NAME.training]`.

    Attributes:
        optimizer: "adam" is the paper's (eq. 4 and 5).
        warmup_epochs: The learning rate rises linearly over these; may be a fraction.
        schedule: "plateau" (the paper's adaptive schedule) multiplies the rate by `plateau_factor` when more
            than `plateau_patience` epochs in a row bring no lower selection loss; "cosine" falls to zero;
            "constant" stays.
        early_stopping_patience: Epochs without a lower selection loss before training stops; 0 never stops early.
        early_stopping_min_delta: For the schedule and for early stopping, a loss is lower when it is lower by more than
            this. The weights that are kept are those of the lowest loss all the same.
        precision: Of the network's arithmetic; "auto" is bf16 where the processor has it and the network gains by it
            (`training.execution.CPU_PRECISIONS`).
        compile: Run the network through PyTorch's compiler, on a GPU with CUDA graphs; "auto" does so on a GPU for long
            trainings (`training.execution.COMPILED_SLICES`).
        class_weights: "balanced" weights the loss by the inverse frequency of the class.
        gradient_clip: Largest norm of the gradient; 0 does not clip.
        backbone: "frozen" computes its features once, of slices as they are (no augmentation), and trains the head on
            them, in fp32: a quick look at pretrained weights.
    """

    epochs: int = Field(default=15, ge=1, le=1000)
    batch_size: int = Field(default=16, ge=2, le=4096)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    warmup_epochs: float = Field(default=0.0, ge=0)
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    plateau_factor: float = Field(default=0.3, gt=0, lt=1)
    plateau_patience: int = Field(default=1, ge=0)
    early_stopping_patience: int = Field(default=4, ge=0)
    early_stopping_min_delta: float = Field(default=0.0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    compile: Literal["auto", "on", "off"] = "off"
    class_weights: Literal["none", "balanced"] = "none"
    gradient_clip: float = Field(default=1.0, ge=0)
    backbone: Literal["trained", "frozen"] = "trained"


class ModelSettings(_Settings):
    """One model of the comparison. What is left out comes from the zoo (paper section III)."""

    backbone: str | None = None
    head: HeadKind | None = None
    weights: str = "pretrained"
    backbone_options: dict[str, bool | int | float | str] = {}
    training: dict[str, Any] = {}


class FoldSettings(_Settings):
    """Dividing the set several times, so that every slice is tested by models that never saw its group.

    Attributes:
        scheme: "none"; "given" trains on the set's own splits again with other seeds; "holdout", "kfold" and
            "leave-one-out" divide the set anew by whole groups, see `cspine.data.splits.make_folds`.
        by: What stays together; "auto" is the patient, else study, series, source slice, else copies found from pixels.
        folds: Parts of "kfold".
        repeats: How often all of it is done, with seed, seed + 1, ...
        test_fraction: Of "holdout".
        selection_fraction: Of what is not held out: selected on, never reported.
        given: Report the set's own splits as well, side by side; "auto" does so where the set has some.
    """

    scheme: Literal["none", "given", "holdout", "kfold", "leave-one-out"] = "none"
    by: Literal["auto", "patient_id", "study_uid", "series_uid", "source_id", "slice_id"] = "auto"
    folds: int = Field(default=5, ge=2, le=1000)
    repeats: int = Field(default=1, ge=1, le=100)
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    selection_fraction: float = Field(default=0.15, gt=0, lt=1)
    given: bool | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _can_be_done(self) -> FoldSettings:
        if self.scheme == "given" and self.repeats < 2:
            raise ValueError('"given" is the set\'s own splits again: set repeats to 2 or more')
        if self.scheme == "given" and self.given is False:
            raise ValueError('scheme = "given" and given = false exclude each other')
        return self


class OperatingPointSettings(_Settings):
    """How a threshold is chosen on the selection split: "youden", or a rate that is to be kept (`target`, 0..1)."""

    rule: Literal["youden", "sensitivity", "fpr"]
    target: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _fits(self) -> OperatingPointSettings:
        if (self.target is None) != (self.rule == "youden"):
            raise ValueError("youden has no target, sensitivity and fpr need one")
        return self


class EvaluationSettings(_Settings):
    """How numbers are made.

    Attributes:
        unit: What the bootstrap draws; "auto" is the patient, else study or series from ten on, else source slice,
            else slice.
        audit: Look for copies, leaks, anomalies and shortcuts in the slices that are used.
        baselines: Score what sees no anatomy on the reported split too.
        folds: Divide the set several times.
        operating_points: Thresholds chosen on the selection split and shown on the reported one; predictive values by
            prevalence are shown at the first. Where both splits are the same, there are none.
        calibration: Which fit on the selection split stands for "calibrated". Both are fitted and shown.
        store_calibration: Also write each model's checkpoint with that fit and the first operating point in its
            header, as `calibrated.safetensors` beside the checkpoint, which stays as it is.
    """

    threshold: float = Field(default=0.5, ge=0, le=1)
    draws: int = Field(default=2000, ge=40, le=100_000)
    level: float = Field(default=0.95, gt=0.5, lt=1)
    unit: str = "auto"
    audit: bool = True
    baselines: bool = True
    folds: FoldSettings = FoldSettings()
    operating_points: tuple[OperatingPointSettings, ...] = (
        OperatingPointSettings(rule="youden"),
        OperatingPointSettings(rule="sensitivity", target=0.95),
        OperatingPointSettings(rule="fpr", target=0.05),
    )
    calibration: Literal["temperature", "platt"] = "platt"
    store_calibration: bool = False

    @model_validator(mode="after")
    def _points_differ(self) -> EvaluationSettings:
        if len(set(self.operating_points)) < len(self.operating_points):
            raise ValueError("operating_points names a rule twice")
        return self


class RobustnessSettings(_Settings):
    """The robustness curves.

    Attributes:
        corruptions: Names in `robustness.corruptions.CORRUPTIONS`; the report names those that the set cannot show.
        severities: Of 1 to 5.
        max_slices: Above 0 takes a seeded part of the reported split.
        draws: For the intervals.
        window: Through which 8-bit slices are taken to have been made, so that their grey levels mean HU.
        field_of_view_mm: Length of the longer side of slices that have no spacing.
    """

    enabled: bool = True
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    severities: tuple[int, ...] = SEVERITIES
    max_slices: int = Field(default=0, ge=0)
    draws: int = Field(default=1000, ge=40)
    window: Window = Window()
    field_of_view_mm: float = Field(default=180.0, gt=0, le=1000)


class ExplanationSettings(_Settings):
    """Where the models look, on slices with a fracture of the reported split (docs/explanations.md).

    Attributes:
        enabled: "auto" does so where masks or boxes say where fractures are, and captum is installed.
        method: "occlusion" points better and takes over a hundred passes a slice; "gradcam" takes one.
        max_slices: How many are drawn for each model, the same for all.
    """

    enabled: bool | Literal["auto"] = "auto"
    method: Literal["gradcam", "occlusion"] = "gradcam"
    max_slices: int = Field(default=40, ge=1, le=10_000)


class Experiment(_Settings):
    """A whole comparison, ready to run."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str
    description: str = ""
    seed: int = Field(default=0, ge=0, lt=2**31)
    data: DataSettings = DataSettings()
    splits: SplitSettings = SplitSettings()
    preprocess: PreprocessSettings = PreprocessSettings()
    augment: AugmentSettings = AugmentSettings()
    training: TrainingSettings = TrainingSettings()
    models: dict[str, ModelSettings] = Field(min_length=1)
    evaluation: EvaluationSettings = EvaluationSettings()
    robustness: RobustnessSettings = RobustnessSettings()
    explanations: ExplanationSettings = ExplanationSettings()
    samples: int = Field(default=4, ge=0, le=50)

    @model_validator(mode="after")
    def _models_resolve(self) -> Experiment:
        for name in self.models:
            # pydantic lets an error of another model through as it is, and its keys would lack the way to them.
            for where, find in (
                (f"models.{name}.training.", self.find_training),
                ("models.", self.find_spec),
            ):
                try:
                    find(name)
                except ValidationError as error:
                    raise ExperimentError(
                        _describe(error, where), where=f"models.{name}", fix="see docs/glossary.md"
                    ) from None
        return self

    def find_training(self, model: str) -> TrainingSettings:
        """The training settings of one model, its overrides applied."""
        merged = {**self.training.model_dump(), **self.models[model].training}
        return TrainingSettings.model_validate(merged)

    def list_choices(self) -> tuple[str, ...]:
        """What training chooses by the selection split, in words."""
        every = [self.find_training(name) for name in self.models]
        chosen = {
            "early stopping": any(one.early_stopping_patience for one in every),
            "the learning rate's schedule": any(one.schedule == "plateau" for one in every),
            "the choice of the best epoch": True,
        }
        return tuple(words for words, done in chosen.items() if done)

    def find_spec(self, model: str) -> ModelSpec:
        """The network of one model."""
        settings = self.models[model]
        return resolve_spec(model, settings.backbone, settings.head, settings.backbone_options)

    def make_recipe(self, scale: Scale) -> Recipe:
        """The recipe of a model whose weights expect `scale`."""
        return self.preprocess.make_recipe(scale)


def read_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file.

    Args:
        path: A TOML file.
        overrides: "a.b=value" each, applied in order; a value is TOML, or a plain string where it is not.

    Raises:
        ExperimentError: the file is missing, is not TOML, or does not validate; names each key at fault.
    """
    path = Path(path)
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise ExperimentError(f"the experiment file cannot be read: {reason}", where=str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExperimentError(f"the experiment file is not TOML: {error}", where=str(path)) from None
    for override in overrides:
        _apply_override(content, override)
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        raise ExperimentError(
            _describe(error), where=str(path), fix="see docs/glossary.md and experiments/"
        ) from None


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ExperimentError(
            f"{override!r} is no override",
            where="--set",
            fix="write --set key.sub=value, such as training.epochs=3",
        )
    table = content
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ExperimentError(f"{part!r} is a value, not a table", where=f"--set {override}")
    table[parts[-1]] = _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _describe(error: ValidationError, prefix: str = "") -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "experiment"
        hint = (
            "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        )
        lines.append(f"{prefix}{key}: {hint}")
    return "the experiment does not validate: " + "; ".join(lines)
