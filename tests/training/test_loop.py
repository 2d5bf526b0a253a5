"""The training loop on a set that anything can learn: bright against dark squares."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from cspine.core.errors import InputError, OutputError, TrainingError
from cspine.core.files import write_text
from cspine.data.cache import SliceCache
from cspine.experiment import AugmentSettings, TrainingSettings
from cspine.models.checkpoint import load_checkpoint
from cspine.models.classifier import FractureClassifier, build_classifier
from cspine.models.header import CheckpointHeader, HeadKind, ModelSpec
from cspine.preprocess import Equalise, Recipe, Resize, Scale
from cspine.training import batches as batches_module
from cspine.training import execution as compiling
from cspine.training import loop
from cspine.training import loop as tally
from cspine.training.batches import make_cases, shuffle_batches
from cspine.training.execution import CompileChoice, Execution, PrecisionChoice
from cspine.training.loop import TrainingPlan, make_class_weights, train
from cspine.training.state import Outcome, Progress, is_started
from cspine.training.step import make_optimizer, set_learning_rate

RECIPE = Recipe(steps=(Equalise(method="none"), Resize(height_px=32, width_px=32)))
SPEC = ModelSpec(name="small", backbone="test_resnet", head=HeadKind.SOFTMAX)
COUNT = 48


@pytest.fixture(scope="module")
def cache() -> SliceCache:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (COUNT, 32, 32), dtype=np.uint8)
    pixels[::2, 8:24, 8:24] += np.uint8(150)
    return SliceCache(pixels, tuple(f"s{number:02}" for number in range(COUNT)), Path())


def run(
    cache: SliceCache,
    folder: Path,
    fingerprint: str = "same",
    seed: int = 5,
    *,
    model: FractureClassifier | None = None,
    labels: list[int] | None = None,
    train_count: int = 32,
    on_execution: Callable[[Execution], None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Outcome:
    labels = labels or [1 - number % 2 for number in range(COUNT)]
    table = pl.DataFrame({"slice_id": cache.slice_ids, "label": labels})
    plan = TrainingPlan(
        model=model or build_classifier(SPEC, Scale(), seed=seed),
        header=CheckpointHeader(spec=SPEC, recipe=RECIPE, manifest_hash="m", weights="none"),
        settings=TrainingSettings(**{"epochs": 4, "batch_size": 8, "learning_rate": 3e-3, **options}),
        augment=AugmentSettings(),
        seed=seed,
        fingerprint=fingerprint,
    )
    cases, selection = make_cases(table[:train_count], cache), make_cases(table[32:], cache)
    return train(plan, cache, cases, selection, folder, on_execution=on_execution, on_step=on_step)


def strip(outcome: Outcome) -> list[dict[str, Any]]:
    return [record.model_dump(exclude={"seconds", "slices_per_s"}) for record in outcome.history]


def set_selection_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    waiting = iter(losses)
    monkeypatch.setattr(loop, "compute_loss", lambda *_: (next(waiting), 0.5))


def test_it_learns_and_keeps_the_best_epoch(cache: SliceCache, tmp_path: Path) -> None:
    outcome = run(cache, tmp_path, epochs=12, early_stopping_patience=0)
    losses = [record.val_loss for record in outcome.history]
    assert outcome.best_epoch == 1 + int(np.argmin(losses))
    assert outcome.history[outcome.best_epoch - 1].val_accuracy > 0.95
    assert not outcome.stopped_early
    checkpoint = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert checkpoint.header.training["best_epoch"] == outcome.best_epoch
    assert checkpoint.header.training["seed"] == 5
    with torch.no_grad():
        logits = checkpoint.model(torch.from_numpy(cache.pixels[32:]))
    labels = torch.tensor([1.0, 0.0] * 8)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert float(loss) == pytest.approx(min(losses), rel=1e-3, abs=1e-6)


def test_a_finished_run_leaves_an_outcome_and_no_state(cache: SliceCache, tmp_path: Path) -> None:
    outcome = run(cache, tmp_path, epochs=2)
    history = pl.read_parquet(tmp_path / "history.parquet")
    assert history.to_dicts() == [record.model_dump() for record in outcome.history]
    assert [path.name.startswith("events.out.tfevents") for path in (tmp_path / "events").iterdir()] == [True]
    names = {"checkpoint.safetensors", "history.parquet", "events", "outcome.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert is_started(tmp_path)


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_interrupted_and_resumed_is_bit_equal(
    cache: SliceCache, tmp_path: Path, schedule: str, optimizer: str
) -> None:
    def interrupt(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (4, 2):
            raise KeyboardInterrupt

    # Labels without sense, so that the plateau schedule has lowered the rate before the interruption.
    labels = np.random.default_rng(1).integers(0, 2, COUNT).tolist()
    options: dict[str, Any] = {
        "schedule": schedule,
        "optimizer": optimizer,
        "warmup_epochs": 0.5,
        "epochs": 6,
    }
    options |= {
        "plateau_patience": 0,
        "early_stopping_patience": 0,
        "labels": labels,
        "class_weights": "balanced",
    }
    whole = run(cache, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        run(cache, tmp_path / "parts", on_step=interrupt, **options)
    assert is_started(tmp_path / "parts")
    assert not (tmp_path / "parts/outcome.json").exists()
    parts = run(cache, tmp_path / "parts", **options)
    assert strip(whole) == strip(parts)
    one, other = (tmp_path / name / "checkpoint.safetensors" for name in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()
    rates = [record.learning_rate for record in whole.history]
    assert rates[-1] < rates[1]


def test_a_run_stopped_before_its_first_epoch_ends_starts_again(cache: SliceCache, tmp_path: Path) -> None:
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cache, tmp_path, on_step=interrupt)
    assert not is_started(tmp_path)
    assert len(run(cache, tmp_path, epochs=1).history) == 1


def test_another_seed_gives_another_history(cache: SliceCache, tmp_path: Path) -> None:
    one, other = (run(cache, tmp_path / str(seed), seed=seed, epochs=1) for seed in (1, 2))
    assert strip(one) != strip(other)


def test_a_finished_run_is_returned_as_it_is(cache: SliceCache, tmp_path: Path) -> None:
    first = run(cache, tmp_path, epochs=1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert run(cache, tmp_path, epochs=1, on_step=lambda _: pytest.fail("it trained again")) == first
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_run_of_another_fingerprint_is_refused(cache: SliceCache, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    run(cache, tmp_path / "finished", epochs=1)
    with pytest.raises(KeyboardInterrupt):
        run(cache, tmp_path / "begun", on_step=interrupt)
    for name in ("finished", "begun"):
        with pytest.raises(InputError, match="other settings") as caught:
            run(cache, tmp_path / name, fingerprint="another", epochs=1)
        assert caught.value.where == str(tmp_path / name)


def test_a_damaged_state_is_refused(cache: SliceCache, tmp_path: Path) -> None:
    write_text(tmp_path / "state.pt", "not a state")
    with pytest.raises(InputError, match="damaged") as caught:
        run(cache, tmp_path)
    assert caught.value.where == str(tmp_path / "state.pt")


def test_early_stopping_has_patience_and_keeps_the_best(
    cache: SliceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_selection_losses(monkeypatch, [0.9, 0.5, 0.6, 0.5, 0.7, 0.1])
    outcome = run(cache, tmp_path, epochs=30, early_stopping_patience=3)
    assert outcome.stopped_early
    assert (outcome.best_epoch, len(outcome.history)) == (2, 5)
    header = load_checkpoint(tmp_path / "checkpoint.safetensors").header
    assert (header.training["best_epoch"], header.training["best_loss"]) == (2, 0.5)


def test_a_fall_within_min_delta_does_not_reset_the_patience(
    cache: SliceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_selection_losses(monkeypatch, [0.9, 0.5, 0.45, 0.41, 0.35, 0.34, 0.36, 0.33])
    outcome = run(cache, tmp_path, epochs=20, early_stopping_patience=3, early_stopping_min_delta=0.1)
    # .35 is more than .1 below .5, as .45 and .41 are not; then three epochs without such a fall.
    assert (outcome.best_epoch, len(outcome.history)) == (8, 8)


def test_the_plateau_schedule_uses_the_min_delta_too(
    cache: SliceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"plateau_factor": 0.5, "plateau_patience": 1, "early_stopping_patience": 0}
    set_selection_losses(monkeypatch, [1.0, 0.99995, 0.9999, 0.9998])
    plain = run(cache, tmp_path / "plain", epochs=4, **options)
    assert {record.learning_rate for record in plain.history} == {3e-3}  # every one is lower
    set_selection_losses(monkeypatch, [1.0, 0.99995, 0.9999, 0.9998])
    asking = run(cache, tmp_path / "asking", epochs=4, early_stopping_min_delta=0.1, **options)
    assert [record.learning_rate for record in asking.history] == [3e-3, 3e-3, 3e-3, 1.5e-3]


@pytest.mark.parametrize("name", ["outcome.json", "folder"])
def test_a_damaged_run_is_refused_in_one_message(cache: SliceCache, tmp_path: Path, name: str) -> None:
    if name == "folder":
        write_text(tmp_path / "run", "a file where the folder should be")
        with pytest.raises(OutputError, match="cannot write"):
            run(cache, tmp_path / "run")
    else:
        write_text(tmp_path / name, "{bad")
        with pytest.raises(InputError, match="damaged"):
            run(cache, tmp_path)


def test_the_event_file_is_closed_when_training_is_interrupted(
    cache: SliceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    closed: list[bool] = []
    real = loop.open_events

    def open_watched(folder: Path, epoch: int) -> Any:
        events = real(folder, epoch)
        monkeypatch.setattr(events, "close", lambda: closed.append(True))
        return events

    monkeypatch.setattr(loop, "open_events", open_watched)
    with pytest.raises(KeyboardInterrupt):
        run(cache, tmp_path, on_step=interrupt)
    assert closed == [True]


def test_the_checkpoint_is_of_the_best_epoch_and_not_the_last(
    cache: SliceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"schedule": "constant", "early_stopping_patience": 0}
    set_selection_losses(monkeypatch, [0.9, 0.5])
    run(cache, tmp_path / "two", epochs=2, **options)
    set_selection_losses(monkeypatch, [0.9, 0.5, 0.6, 0.7])
    run(cache, tmp_path / "four", epochs=4, **options)
    two, four = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("two", "four"))
    assert all(torch.equal(two[name], four[name]) for name in two)


def test_a_selection_loss_that_is_not_finite_is_never_the_best(
    cache: SliceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.epoch == 3:
            raise KeyboardInterrupt

    set_selection_losses(monkeypatch, [math.nan, 0.5, math.inf])
    with pytest.raises(KeyboardInterrupt):
        run(cache, tmp_path, epochs=3, on_step=interrupt)
    outcome = run(cache, tmp_path, epochs=3)
    assert outcome.best_epoch == 2
    assert math.isnan(outcome.history[0].val_loss)
    again = run(cache, tmp_path, epochs=3)
    assert (again.best_epoch, again.history[2].val_loss) == (2, math.inf)


def test_a_selection_loss_that_is_never_finite_is_an_error(
    cache: SliceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_selection_losses(monkeypatch, [math.nan, math.nan])
    with pytest.raises(TrainingError, match="never finite in 2 epochs"):
        run(cache, tmp_path, epochs=2)
    assert not (tmp_path / "checkpoint.safetensors").exists()


class Broken(FractureClassifier):
    """Gives NaN for every slice once it has seen so many batches."""

    good_batches = 5

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.good_batches -= 1
        logits = super().forward(pixels)
        return logits if self.good_batches >= 0 else logits * math.nan


def test_a_loss_that_is_not_finite_names_batch_and_slices(cache: SliceCache, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        run(cache, tmp_path, model=Broken(SPEC, Scale()))
    assert "nan in epoch 2, batch 2" in caught.value.what
    named = str(caught.value.where).removeprefix("slices ").removesuffix(", ...").split(", ")
    order = torch.randperm(32, generator=torch.Generator().manual_seed(5 * 1_000_003 + 2))
    assert named == [f"s{number:02}" for number in order[8:12].tolist()]
    assert not (tmp_path / "outcome.json").exists()
    assert load_checkpoint(tmp_path / "checkpoint.safetensors").header.training["best_epoch"] == 1


def test_a_loss_beyond_reason_is_divergence(
    cache: SliceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "DIVERGED_LOSS", 1e-3)
    with pytest.raises(TrainingError, match="diverged: the mean loss of epoch 1") as caught:
        run(cache, tmp_path)
    named = str(caught.value.where).removeprefix("slices ").removesuffix(", ...").split(", ")
    order = torch.randperm(32, generator=torch.Generator().manual_seed(5 * 1_000_003 + 1)).tolist()
    assert named in [[f"s{number:02}" for number in order[start : start + 4]] for start in range(0, 32, 8)]


def test_a_full_disk_is_an_output_error(
    cache: SliceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OutputError, match="disk is full"):
        run(cache, tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_batch_of_nan_is_named_at_the_end_of_the_epoch(
    cache: SliceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tally.READ_PAUSE_S, "cpu", math.inf)
    with pytest.raises(TrainingError) as caught:
        run(cache, tmp_path, model=Broken(SPEC, Scale()))
    assert "nan in epoch 2, batch 2" in caught.value.what
    order = torch.randperm(32, generator=torch.Generator().manual_seed(5 * 1_000_003 + 2)).tolist()
    assert caught.value.where == f"slices {', '.join(f's{number:02}' for number in order[8:12])}, ..."
    assert load_checkpoint(tmp_path / "checkpoint.safetensors").header.training["best_epoch"] == 1


class CountReads(TorchDispatchMode):
    """Counts how often a tensor's value is asked for, for which the host would wait for a GPU."""

    reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_no_step_asks_for_a_value(
    cache: SliceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    monkeypatch.setitem(tally.READ_PAUSE_S, "cpu", math.inf)
    counted: list[int] = []
    with CountReads() as mode:
        options: dict[str, Any] = {"class_weights": "balanced", "optimizer": optimizer, "precision": "bf16"}
        run(cache, tmp_path, epochs=1, on_step=lambda _: counted.append(mode.reads), **options)
        assert float(torch.ones(1)) == 1.0
    assert counted == [counted[0]] * 4
    assert mode.reads > counted[0]  # it does count


def test_pixels_that_lie_on_the_device_train_to_the_same_bits(
    cache: SliceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed = run(cache, tmp_path / "streamed", epochs=2, train_count=27)
    monkeypatch.setattr(batches_module, "count_free_bytes", lambda _: 10**9)
    monkeypatch.setitem(tally.READ_PAUSE_S, "cpu", math.inf)
    gone = SliceCache(cache.pixels.copy(), cache.slice_ids, cache.folder)

    def forget(_: Progress) -> None:
        gone.pixels[:] = 0

    resident = run(gone, tmp_path / "resident", epochs=2, train_count=27, on_step=forget)
    assert strip(resident) == strip(streamed)
    one, other = (tmp_path / name / "checkpoint.safetensors" for name in ("streamed", "resident"))
    assert one.read_bytes() == other.read_bytes()


def test_on_step_hears_of_every_batch(cache: SliceCache, tmp_path: Path) -> None:
    heard: list[Progress] = []
    run(cache, tmp_path, epochs=2, on_step=heard.append)
    assert [(one.epoch, one.step, one.steps) for one in heard] == [
        (e, s, 4) for e in (1, 2) for s in (1, 2, 3, 4)
    ]
    assert all(one.loss > 0 and 0 <= one.accuracy <= 1 and one.slices_per_s > 0 for one in heard)


def test_a_last_batch_of_one_slice_does_not_stop_the_training(cache: SliceCache, tmp_path: Path) -> None:
    heard: list[Progress] = []
    run(cache, tmp_path, epochs=1, train_count=17, on_step=heard.append)
    assert [one.steps for one in heard] == [2, 2]


def test_bf16_learns_too(cache: SliceCache, tmp_path: Path) -> None:
    outcome = run(cache, tmp_path, epochs=1, precision="bf16")
    assert math.isfinite(outcome.history[0].train_loss)
    assert load_checkpoint(tmp_path / "checkpoint.safetensors").header.precision == "bf16"


def test_a_resumed_run_keeps_the_precision_that_it_chose(
    cache: SliceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    heard: list[Execution] = []
    monkeypatch.setattr(compiling, "has_bf16", lambda _: True)
    monkeypatch.setattr(compiling, "CPU_PRECISIONS", {"test_resnet": "bf16"})
    with pytest.raises(KeyboardInterrupt):
        run(cache, tmp_path, epochs=2, precision="auto", on_execution=heard.append, on_step=interrupt)
    monkeypatch.setattr(compiling, "has_bf16", lambda _: False)  # as on another machine
    outcome = run(cache, tmp_path, epochs=2, precision="auto", on_execution=heard.append)
    assert [one.precision for one in heard] == [outcome.precision] * 2
    assert outcome.precision is not None
    assert outcome.precision.precision == "bf16"
    header = load_checkpoint(tmp_path / "checkpoint.safetensors").header
    assert header.precision == "bf16"
    assert header.training["precision"] == "auto"
    assert header.training["precision_why"] == outcome.precision.why


def test_auto_trains_as_the_precision_that_it_chose(cache: SliceCache, tmp_path: Path) -> None:
    chosen = run(cache, tmp_path / "auto", epochs=1, precision="auto").precision
    assert chosen is not None
    named = run(cache, tmp_path / "named", epochs=1, precision=chosen.precision).precision
    assert named == PrecisionChoice(precision=chosen.precision, why="as the experiment says")
    one, other = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("auto", "named"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_compiled_network_learns_the_same(
    cache: SliceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: bool
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    seen: list[int] = []

    def compile_module(module: FractureClassifier) -> Callable[[torch.Tensor], torch.Tensor]:
        if real:  # every operation as it stands, so that results are equal to the bit

            def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
                seen.append(8)
                return graph.forward

            return torch.compile(module, backend=backend, dynamic=False)
        return lambda inputs: seen.append(len(inputs)) or module(inputs)

    monkeypatch.setattr(compiling, "compile_module", compile_module)
    if not real:
        monkeypatch.setattr(torch.compiler, "reset", lambda: None)  # would import all of it
    options: dict[str, Any] = {"epochs": 2, "train_count": 27, "schedule": "constant"}
    plain = run(cache, tmp_path / "plain", **options)
    with pytest.raises(KeyboardInterrupt):
        run(cache, tmp_path / "compiled", on_step=interrupt, compile="on", **options)
    state = torch.load(tmp_path / "compiled/state.pt", weights_only=True)
    assert set(state["model"]) == set(build_classifier(SPEC, Scale(), seed=5).state_dict())
    # Neither the last batch, of three, nor the validation was compiled: the first epoch has three whole batches.
    assert seen == ([8] if real else [8] * 4)
    compiled = run(cache, tmp_path / "compiled", compile="on", **options)
    assert strip(compiled) == strip(plain)
    one, other = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("plain", "compiled"))
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert compiled.compiling == CompileChoice(compiled=True, why="as the experiment says")
    header = load_checkpoint(tmp_path / "compiled/checkpoint.safetensors").header
    assert header.training["compile"] == "on"
    assert header.training["compiled"] is True


def test_a_network_that_cannot_be_compiled_is_an_error(
    cache: SliceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compiling, "compile_module", lambda _: refuse)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)  # would import all of it
    with pytest.raises(TrainingError, match=r"cannot be compiled here \(RuntimeError\)") as caught:
        run(cache, tmp_path, compile="on")
    assert caught.value.fix == 'set training.compile to "off"'


def test_a_frozen_backbone_runs_once_and_only_the_head_learns(cache: SliceCache, tmp_path: Path) -> None:
    model = build_classifier(SPEC, Scale(), seed=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[int] = []
    model.backbone.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    outcome = run(cache, tmp_path, model=model, backbone="frozen", epochs=30, early_stopping_patience=0)
    assert sum(seen) == COUNT  # of both sets, whatever the epochs
    after = model.state_dict()
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"head"}
    assert outcome.history[-1].val_loss < outcome.history[0].val_loss
    assert outcome.precision is not None
    assert outcome.precision.precision == "fp32"
    loaded = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert loaded.header.training["backbone"] == "frozen"


def test_a_head_on_a_frozen_backbone_resumes_to_the_same_bits(cache: SliceCache, tmp_path: Path) -> None:
    whole = run(cache, tmp_path / "whole", backbone="frozen", epochs=3)

    def stop(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (2, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cache, tmp_path / "cut", backbone="frozen", epochs=3, on_step=stop)
    assert strip(run(cache, tmp_path / "cut", backbone="frozen", epochs=3)) == strip(whole)
    files = [load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_cases_are_found_by_id_and_unlabelled_ones_left_out(cache: SliceCache) -> None:
    cases = make_cases(pl.DataFrame({"slice_id": ["s07", "s01", "s03"], "label": [1, None, 0]}), cache)
    assert cases.slice_ids == ("s07", "s03")
    assert cases.rows.tolist() == [7, 3]
    assert cases.labels.tolist() == [1.0, 0.0]
    assert len(cases) == 2


def test_class_weights_balance_the_classes() -> None:
    labels = torch.tensor([0.0, 0.0, 0.0, 1.0])
    balanced = make_class_weights(labels, TrainingSettings(class_weights="balanced"))
    assert balanced.tolist() == pytest.approx([4 / 6, 2.0])
    assert float(balanced[labels.long()].mean()) == pytest.approx(1)
    assert make_class_weights(labels, TrainingSettings()).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("kind", "beta"), [("adam", "betas"), ("adamw", "betas"), ("sgd", "momentum")])
def test_optimizers_take_their_settings_and_decay_no_bias(kind: Any, beta: str) -> None:
    model = build_classifier(SPEC, Scale(), seed=0)
    settings = TrainingSettings(optimizer=kind, learning_rate=0.02, momentum=0.8, weight_decay=0.1)
    optimizer = make_optimizer(model, settings)
    assert type(optimizer).__name__.lower() == kind
    decayed, free = optimizer.param_groups
    assert (decayed["lr"], decayed["weight_decay"], free["weight_decay"]) == (0.02, 0.1, 0.0)
    assert decayed[beta] == ((0.8, 0.999) if beta == "betas" else 0.8)
    assert all(parameter.ndim <= 1 for parameter in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def rate_after(passed: float, base: float = 1.0, **options: Any) -> float:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=9.0)
    set_learning_rate(
        optimizer, TrainingSettings(**{"learning_rate": 1.0, "epochs": 10, **options}), passed, base
    )
    return float(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("passed", "wanted"), [(0.0, 0.01 / 1.01), (0.5, 0.51 / 1.01), (5.0, 0.5), (7.5, 0.1464466), (10.0, 0.0)]
)
def test_the_rate_warms_up_and_follows_a_cosine(passed: float, wanted: float) -> None:
    assert rate_after(passed, warmup_epochs=1.0, schedule="cosine") == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("schedule", ["plateau", "constant"])
def test_the_rate_warms_up_and_then_stays(schedule: str) -> None:
    assert rate_after(1.0, warmup_epochs=2.0, schedule=schedule) == pytest.approx(1.01 / 2.01)
    assert rate_after(2.0, base=0.25, warmup_epochs=2.0, schedule=schedule) == 0.25


def test_the_plateau_schedule_lowers_the_rate_after_its_patience(
    cache: SliceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_selection_losses(monkeypatch, [0.9, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9])
    options: dict[str, Any] = {"plateau_factor": 0.5, "plateau_patience": 1, "early_stopping_patience": 0}
    outcome = run(cache, tmp_path, epochs=7, learning_rate=1e-3, **options)
    rates = [record.learning_rate for record in outcome.history]
    # Epochs 3 and 4 bring nothing: one more than the patience, so epoch 5 runs at half the rate, epoch 7 at a quarter.
    assert rates == pytest.approx([1e-3] * 4 + [5e-4] * 2 + [2.5e-4])


def test_a_warm_up_within_an_epoch_does_not_lower_the_rate(
    cache: SliceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_selection_losses(monkeypatch, [0.9, 0.5])
    outcome = run(cache, tmp_path, epochs=2, learning_rate=1e-3, warmup_epochs=0.9)
    first, second = (record.learning_rate for record in outcome.history)
    assert first == pytest.approx(1e-3 * 0.76 / 0.91)
    assert second == 1e-3


def test_batches_hold_every_case_once_but_a_last_one_alone() -> None:
    batches = list(shuffle_batches(9, 4, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [4, 4]
    assert sorted(torch.cat(list(shuffle_batches(10, 4, torch.Generator()))).tolist()) == list(range(10))
    one, other = (torch.cat(list(shuffle_batches(9, 4, torch.Generator().manual_seed(s)))) for s in (0, 1))
    assert torch.equal(one, torch.cat(batches))
    assert not torch.equal(one, other)
