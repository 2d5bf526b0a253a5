"""A realistic comparison, made up: three models and a baseline on 400 slices, with every special case in it.

`MobileNetV2` is perfect, `ResNet50` has undefined metrics, `ConvNeXt-Tiny` trained for one epoch only.
"""

from __future__ import annotations

import base64
import itertools

import cv2
import numpy as np

from cspine.auditing.findings import Finding
from cspine.core.estimates import (
    BaselineResult,
    Confusion,
    CorruptionError,
    CorruptionErrors,
    Estimate,
    EvaluationResult,
    RobustnessPoint,
    SubgroupResult,
)
from cspine.explain.drawing import encode_png
from cspine.explain.pointing import Likeness, SlicePointing, evaluate_pointing, judge_sanity
from cspine.metrics.clinical import ProbabilityUse, assess_use
from cspine.metrics.effective_size import EffectiveSize, compute_effective_size
from cspine.metrics.intervals import IntervalOptions
from cspine.metrics.paired import ModelComparison, compare_models
from cspine.metrics.scores import METRICS, compute_metrics, compute_precision_recall, compute_roc
from cspine.report.results import (
    ComparisonResults,
    CorruptionStrip,
    DataSummary,
    Epoch,
    ExplainedSlice,
    ModelExplanation,
    ModelResult,
    Note,
    RobustnessResult,
    RunManifest,
    Sample,
    SplitSummary,
)
from tests.metrics.builders import make_clustered_table, make_table

METHOD = "percentile cluster bootstrap, 2000 draws"
UNDEFINED = "no slice was called fracture"
CORRUPTIONS = ("noise", "blur", "rotation", "contrast")


def make_estimate(value: float | None, spread: float = 0.02, reason: str | None = None) -> Estimate:
    """An estimate whose interval is `spread` to both sides, cut at 0 and 1."""
    if value is None:
        return Estimate(
            value=None, low=None, high=None, method=METHOD, unit="source slice", n=20, reason=reason
        )
    low = value - spread if value < 0 else max(0.0, value - spread)
    high = max(value, min(1.0, value + spread))
    return Estimate(value=value, low=low, high=high, method=METHOD, unit="source slice", n=20)


def make_evaluation(name: str, separation: float, seed: int) -> EvaluationResult:
    """400 slices, half of them fractures, whose logits lie `separation` apart."""
    rng = np.random.default_rng(seed)
    y = np.repeat([1, 0], 200)
    prob = 1 / (1 + np.exp(-(rng.normal(size=400) + np.where(y == 1, separation, -separation))))
    called = prob >= 0.5
    metrics = {
        key: make_estimate(found.value, 0.004 + 0.03 * rng.random(), found.reason)
        for key, found in compute_metrics(y, prob, 0.5).items()
    }
    return EvaluationResult(
        model=name,
        split="val",
        positive_class="fracture",
        threshold=0.5,
        slices=400,
        positives=200,
        unit="source slice",
        units=20,
        confusion=Confusion(
            tp=int((called & (y == 1)).sum()),
            fp=int((called & (y == 0)).sum()),
            fn=int((~called & (y == 1)).sum()),
            tn=int((~called & (y == 0)).sum()),
        ),
        metrics=metrics,
        roc=compute_roc(y, prob),
        precision_recall=compute_precision_recall(y, prob),
    )


def make_history(epochs: int, seed: int) -> tuple[Epoch, ...]:
    """Falling losses and rising accuracies, with a little noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for epoch in range(1, epochs + 1):
        fall, bump = np.exp(-epoch / 4), rng.random(2) * 0.02
        rows.append(
            Epoch(
                epoch=epoch,
                train_loss=0.05 + 0.6 * fall + bump[0],
                train_accuracy=0.99 - 0.4 * fall - bump[0],
                val_loss=0.09 + 0.6 * fall + bump[1] * 3,
                val_accuracy=0.97 - 0.38 * fall - bump[1],
                learning_rate=1e-3 if epoch < 8 else 3e-4,
                seconds=68.4 + bump[0],
                slices_per_s=55.1 - 100 * bump[1],
            )
        )
    return tuple(rows)


def make_model(name: str, backbone: str, epochs: int, separation: float, seed: int) -> ModelResult:
    """A model trained for `epochs`, the second best before the last."""
    return ModelResult(
        name=name,
        backbone=backbone,
        head="global average pooling, linear, softmax over 2 classes",
        weights="none (random initialisation)",
        parameters=2_226_434 + seed * 1_000_003,
        flops=300_774_272 + seed * 1_000_000_007,
        recipe="equalise(global) > resize(224) > scale(1/255) > channels(3)",
        checkpoint_hash=f"{seed:016x}",
        precision="bf16",
        best_epoch=max(1, epochs - 2),
        stopped_early=epochs > 1,
        train_s=68.4 * epochs,
        history=make_history(epochs, seed),
        evaluation=make_evaluation(name, separation, seed),
    )


def make_png(seed: int, size: int = 64) -> str:
    """A grey disc with a brighter ring: enough to see that images arrive."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2
    radius = np.hypot(x, y) / (size / 2)
    pixels = 90.0 * (radius < 0.85) + 120 * (np.abs(radius - 0.3) < 0.08) + rng.normal(0, 8, (size, size))
    _, encoded = cv2.imencode(".png", np.clip(pixels, 0, 255).astype(np.uint8))
    return base64.b64encode(encoded.tobytes()).decode()


def make_robustness(models: tuple[ModelResult, ...]) -> tuple[RobustnessPoint, ...]:
    """Accuracy that falls with severity, faster for noise than for contrast; one point is undefined."""
    points = []
    for (place, model), (steep, corruption), severity in itertools.product(
        enumerate(models), enumerate(CORRUPTIONS), range(6)
    ):
        value = max(0.5, (0.99 - 0.03 * place) - severity**1.5 * 0.05 / (1 + steep) * (1 + place / 2))
        accuracy = make_estimate(value, 0.01 + 0.012 * severity)
        auroc = make_estimate(min(1.0, value + 0.01), 0.01 + 0.01 * severity)
        if place == 2 and corruption == "rotation" and severity == 3:
            accuracy = make_estimate(None, reason="no slice could be read")
        points.append(
            RobustnessPoint(
                model=model.name, corruption=corruption, severity=severity, accuracy=accuracy, auroc=auroc
            )
        )
    return tuple(points)


def make_robustness_details(models: tuple[ModelResult, ...]) -> RobustnessResult:
    """Corruption errors against the first model, one corruption without any, and a strip of pictures."""
    none = make_estimate(None, reason="MobileNetV2 makes no error under it at any severity")
    rows = tuple(
        CorruptionError(
            model=model.name,
            corruption=kind,
            error=none if kind == "contrast" else make_estimate(0.9, 0.05),
            relative=make_estimate(1.3, 0.2),
        )
        for model in models
        for kind in ("mean", *CORRUPTIONS)
    )
    _, jpeg = cv2.imencode(".jpg", np.zeros((16, 96), np.uint8))
    return RobustnessResult(
        slices=40,
        positives=20,
        errors=CorruptionErrors(
            reference=models[0].name,
            rows=rows,
            left_out={"contrast": "MobileNetV2 makes no error under it at any severity"},
            relative_left_out={},
        ),
        not_applicable={"thickness": "the positions of the slices are not known to be millimetres"},
        center_hu=400,
        width_hu=1800,
        field_of_view_mm=180,
        slice_id="B10 (1)",
        strips=(CorruptionStrip(corruption="noise", jpeg=base64.b64encode(jpeg.tobytes()).decode()),),
    )


def make_subgroups(models: tuple[ModelResult, ...]) -> tuple[SubgroupResult, ...]:
    """Two kinds of fracture, which have no specificity, and two levels, which have both."""
    none = make_estimate(None, reason="no slice is normal")
    return tuple(
        SubgroupResult(
            model=model.name,
            column=column,
            value=value,
            slices=count,
            positives=positives,
            recall=make_estimate(0.9 - 0.11 * place - count / 1000, 0.05),
            specificity=make_estimate(0.8 - 0.07 * place - count / 900, 0.04) if positives < count else none,
        )
        for column, value, count, positives in (
            ("fracture_type", "dens", 31, 31),
            ("fracture_type", "facet", 47, 47),
            ("vertebra_level", "C2", 67, 31),
            ("vertebra_level", "C5", 93, 47),
        )
        for place, model in enumerate(models)
    )


def make_samples(models: tuple[ModelResult, ...]) -> tuple[Sample, ...]:
    """Right ones for every model, wrong ones for all but the perfect first."""
    samples = []
    for place, model in enumerate(models):
        for number, outcome in enumerate(("tp", "tn", "fp", "fn", "tp", "tn", "fn", "tn")):
            if place == 0 and outcome in ("fp", "fn"):
                continue
            prob = 0.5 + (0.41 - number / 30) * (1 if outcome in ("tp", "fp") else -1)
            slice_id = f"val/fracture/CSFDV1B10 ({number + 11})-rotated{place}-rotated1.png"
            samples.append(
                Sample(
                    model=model.name,
                    slice_id=slice_id,
                    outcome=outcome,
                    prob=prob,
                    pixels_png=make_png(place * 10 + number),
                )
            )
    return tuple(samples)


def make_undefined(evaluation: EvaluationResult) -> EvaluationResult:
    """The same evaluation with precision and MCC undefined, and two intervals missing, whole or in part."""
    metrics = dict(evaluation.metrics)
    metrics["precision"] = make_estimate(None, reason=UNDEFINED)
    metrics["mcc"] = make_estimate(None, reason=METRICS["mcc"].undefined)
    for key, ends in (("brier", {"low": None, "high": None}), ("npv", {"high": None})):
        metrics[key] = metrics[key].model_copy(update={**ends, "reason": "a bootstrap cannot bound it"})
    return evaluation.model_copy(update={"metrics": metrics})


def make_pairs(names: tuple[str, ...]) -> ModelComparison:
    """The models and the baseline compared: the further down the list, the worse."""
    rng = np.random.default_rng(8)
    labels, patients = np.arange(120) % 2, np.arange(120) // 4
    tables = [
        make_table(
            labels,
            rng.normal(size=120) + (labels * 2 - 1) * (3.0 - place),
            patients,
            model=name,
            split="val",
            checkpoint=f"c{place}",
        )
        for place, name in enumerate(names)
    ]
    return compare_models(tables, swaps=499, options=IntervalOptions(draws=200))


def make_uses(
    names: tuple[str, ...], *, fitted: bool
) -> tuple[tuple[ProbabilityUse, ...], tuple[EffectiveSize, ...]]:
    """Probabilities in use and effective sizes of each model on "val"; `fitted` on "tune"."""
    uses, sizes = [], []
    for place, name in enumerate(names):
        options = {"model": name, "checkpoint": f"c{place}", "shift": 2.0 - 0.6 * place, "mixed": True}
        reported = make_clustered_table(place, split="val", **options)
        selection = make_clustered_table(place + 10, split="tune", **options) if fitted else None
        uses.append(assess_use(reported, selection, options=IntervalOptions(draws=60)))
        sizes.append(
            compute_effective_size(reported, ("accuracy", "auroc"), options=IntervalOptions(draws=60))
        )
    return tuple(uses), tuple(sizes)


def make_findings() -> tuple[Finding, ...]:
    """Two of one code that invalidate, one more that does, a warning and a remark: as a run sorts them."""
    beaten = tuple(
        Finding(
            code="no-better-than-a-baseline",
            severity="invalidates",
            text=f"This split does not show that {name} learned fractures.",
            evidence={"model": name, "baseline": "1-NN, 32x32 pixels"},
        )
        for name in ("ResNet50", "ConvNeXt-Tiny")
    )
    return (
        *beaten,
        Finding(code="selection-on-reported", severity="invalidates", text="Early stopping watched val."),
        Finding(code="unknown-patients", severity="warning", text="There are no patient ids."),
        Finding(code="copies", severity="info", text="4,200 files are 3,900 distinct slices."),
    )


def make_explanations(names: tuple[str, ...], slices: int = 24) -> tuple[ModelExplanation, ...]:
    """Maps of some models: made-up scores of slices of eight patients, a sanity check, and one slice to show."""
    rng = np.random.default_rng(5)
    table = make_table(np.ones(slices), np.zeros(slices), np.arange(slices) % 8)
    picture = encode_png(np.full((16, 16, 3), 90, np.uint8))
    found = []
    for name in names:
        scores = {
            slice_id: SlicePointing(
                *({"hit": float(rng.random() < share), "energy": share / 2} for share in (0.8, 0.1, 0.4)),
                empty=number == 0,
            )
            for number, slice_id in enumerate(table["slice_id"])
        }
        likeness = Likeness(rng.uniform(-0.2, 0.2, slices), rng.uniform(0, 0.2, slices))
        found.append(
            ModelExplanation(
                model=name,
                checkpoint_hash="ab12",
                method="gradcam",
                words="Grad-CAM of layer4, 7 x 7 cells",
                cell_mm=12.0,
                split="val",
                seed=20,
                threshold=0.5,
                pointing=evaluate_pointing(scores, table, masks=20),
                pointing_called=None,
                why_none=None,
                sanity=judge_sanity([("all weights", [likeness])], np.arange(slices) % 8, "patient"),
                samples=(ExplainedSlice(slice_id="val/1.png", prob=0.911, hit=True, picture_png=picture),),
            )
        )
    return tuple(found)


def make_results() -> ComparisonResults:
    """The whole comparison."""
    models = (
        make_model("MobileNetV2", "mobilenetv2_100", 12, 9.0, 1),
        make_model("ResNet50", "resnet50", 15, 1.9, 2),
        make_model("ConvNeXt-Tiny", "convnext_tiny", 1, 0.9, 3),
    )
    resnet = models[1].model_copy(update={"evaluation": make_undefined(models[1].evaluation)})
    models = (models[0], resnet, models[2])
    baseline = BaselineResult(
        name="1-NN, 32x32 pixels",
        description="Nearest neighbour on slices shrunk to 32x32 pixels.",
        evaluation=make_evaluation("1-NN, 32x32 pixels", 0.2, 4),
    )
    uses, sizes = make_uses(tuple(model.name for model in models), fitted=False)
    return ComparisonResults(
        name="paper",
        title="Three classifiers of cervical spine fractures on CT slices",
        description=(
            "MobileNetV2, ResNet50 and ConvNeXt-Tiny trained on the given split of the Kaggle set, "
            "as in the paper."
        ),
        selection_split="val",
        reported_split="val",
        data=DataSummary(
            root="data/kaggle",
            slices=4200,
            splits=(
                SplitSummary(
                    split="train", fracture=1900, normal=1900, patients=None, series=4, source_slices=182
                ),
                SplitSummary(
                    split="val", fracture=200, normal=200, patients=None, series=1, source_slices=20
                ),
            ),
            sizes={"224x224": 4000, "512x512": 200},
            modes={"RGB": 4000, "L": 200},
            notes=("2 source slices stand in train and in val.",),
        ),
        verdict="not evidence",
        findings=make_findings(),
        notes=(
            Note(
                severity="info",
                text="No patient ids: intervals resample source slices, read from file names.",
            ),
            Note(
                severity="warning",
                text="Early stopping watched val, the split that is reported: it flatters.",
            ),
        ),
        models=models,
        baselines=(baseline,),
        pairs=make_pairs(("MobileNetV2", "ResNet50", "ConvNeXt-Tiny", baseline.name)),
        in_use=uses,
        sizes=sizes,
        robustness=make_robustness(models),
        robustness_details=make_robustness_details(models),
        subgroups=make_subgroups(models),
        samples=make_samples(models),
        explanations=make_explanations(("MobileNetV2", "ResNet50")),
        run=RunManifest(
            command="cspine compare experiments/paper.toml --set data.root=data/kaggle",
            started="2026-11-24T08:41:07+00:00",
            wall_s=7384.2,
            stages_s={"Reading slices": 5.2, "Training MobileNetV2": 1830.0},
            seed=20,
            versions={
                "cspine": "0.1.0",
                "torch": "2.9.1",
                "timm": "1.0.22",
                "numpy": "2.3.5",
                "python": "3.11.7",
            },
            machine={"cpu": "2 cores, x86-64", "memory": "16 GiB", "system": "Linux 6.1"},
            hashes={"manifest": "5f2b9c0d11aa7e34", "experiment": "a01b22c93f0e5d77"},
            experiment_toml='[data]\nroot = "data/kaggle"\n\n[training]\nepochs = 15\n',
        ),
    )
