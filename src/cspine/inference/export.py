"""`cspine export`: convert a network, hold the result to the checkpoint, and only then let it have its name."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.core.errors import ExportError, InputError, MissingExtraError
from cspine.core.files import atomic_file
from cspine.core.types import Slice, Split
from cspine.data.manifest import Manifest
from cspine.inference.engines import (
    BIN_FILE,
    RECORD_FILE,
    RECORD_KEY,
    XML_FILE,
    ExportFormat,
    ExportPrecision,
    ExportRecord,
    Runtime,
    RuntimeName,
    StoredOod,
    has_bf16,
    import_openvino,
    is_installed,
    read_record,
    refuse_telemetry,
)
from cspine.inference.gate import BOUNDS, Bounds, GateResult, answer_both, judge
from cspine.inference.predictor import start_engine
from cspine.inference.torch_engine import TorchRuntime
from cspine.models.checkpoint import Checkpoint
from cspine.models.classifier import make_onnx
from cspine.phantom.patient import PhantomSettings, make_patient
from cspine.phantom.scanner import render_plane, sample_slices, to_display8
from cspine.preprocess import Recipe

BATCH = 16
_CHECKED_SPLITS = (Split.VAL, Split.TEST, Split.EXTERNAL)
_PHANTOM = PhantomSettings(patients=6, slices_per_patient=2, field_of_view_mm=180.0, seed=11)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Material:
    """Slices of a manifest, in an order that a seed gave, and the recipe that they go through.

    Attributes:
        manifest: These slices among others: neighbours are read from it.
        table: Rows of the chosen slices.
        origin: Where they are from, in words.
    """

    manifest: Manifest
    table: pl.DataFrame
    recipe: Recipe
    origin: str

    def __len__(self) -> int:
        return self.table.height

    @property
    def slice_ids(self) -> list[str]:
        """In the order of `read_batches`."""
        return self.table["slice_id"].to_list()

    def read_one(self, slice_id: str) -> Pixels:
        """The pixels that the network is given; errors as for `Manifest.read_slice`."""
        return self.recipe.apply(self.manifest.read_slice(slice_id, self.recipe.offsets_mm))

    def read_batches(self) -> Iterator[Pixels]:
        """All slices, some at a time."""
        ids = self.slice_ids
        for at in range(0, len(ids), BATCH):
            yield np.stack([self.read_one(slice_id) for slice_id in ids[at : at + BATCH]])


def choose_checked(
    manifest: Manifest, recipe: Recipe, split: str | None, *, labelled: bool, limit: int, seed: int
) -> Material:
    """Slices to check an export on.

    Args:
        manifest: Whose slices.
        recipe: Of the checkpoint.
        split: None is val, else test, else external, else slices that are in no split.
        labelled: Only slices with a label, of which there must be both classes.
        limit: At most so many, drawn by `seed`.
        seed: Of the draw.

    Raises:
        InputError: there are none, or they are of one class.
        ManifestError, RecipeError: no such split; slices that the recipe does not take.
    """
    recipe.check_domain(manifest.domain, str(manifest.root))
    split = split or next((name for name in _CHECKED_SPLITS if name in manifest.splits), None)
    table = manifest.select(split).table if split else manifest.table.filter(pl.col("split").is_null())
    if labelled:
        table = table.filter(pl.col("label").is_not_null())
    if table.is_empty() or (labelled and table["label"].n_unique() < 2):
        raise InputError(
            "the manifest has no slices to check the export on"
            if table.is_empty()
            else "the slices to check the export on are of one class",
            where=f"split {split or 'none'}",
            fix="name labelled slices of both classes that were not learned from, by --check-on and --check-split",
        )
    table = _draw(table, limit, seed)
    return Material(manifest, table, recipe, f"{table.height:,} slices of split {split or 'none'}")


def choose_calibration(manifest: Manifest, recipe: Recipe, *, count: int, seed: int) -> Material:
    """Training slices to calibrate a quantisation on, as many of each class as there are and as `count` allows.

    Raises:
        ManifestError: there is no train split.
        RecipeError: the recipe does not take these slices.
    """
    recipe.check_domain(manifest.domain, str(manifest.root))
    train = manifest.select(Split.TRAIN).table
    rest = _draw(train, train.height, seed)
    classes = [rest.filter(pl.col("label") == label) for label in (0, 1)]
    each = min(count // 2, *(part.height for part in classes))
    chosen = pl.concat([part.head(each) for part in classes])
    others = rest.join(chosen, on="slice_id", how="anti").head(count - chosen.height)
    table = pl.concat([chosen, others])
    return Material(manifest, table, recipe, f"{table.height:,} slices of split train, seed {seed}")


def _draw(table: pl.DataFrame, limit: int, seed: int) -> pl.DataFrame:
    order = np.random.default_rng((seed, 7)).permutation(table.height)
    return table.sort("slice_id").select(pl.all().gather(order[:limit]))


@lru_cache(maxsize=1)  # the same for every engine that is checked
def draw_phantom(recipe: Recipe) -> Pixels:
    """(12, *recipe.shape) uint8, read-only: slices of drawn necks, whole and broken, through the recipe."""
    pixels = np.stack([recipe.apply(item) for item in _draw_slices(recipe)])
    pixels.setflags(write=False)
    return pixels


def _draw_slices(recipe: Recipe) -> Iterator[Slice]:
    size = _PHANTOM.size_px
    spacing = (_PHANTOM.field_of_view_mm / size,) * 2
    for index in range(_PHANTOM.patients):
        patient = make_patient(index, _PHANTOM)
        for number, drawn in enumerate(sample_slices(patient, _PHANTOM)):
            name = f"{patient.patient_id}-{number}"
            if recipe.domain == "display8":
                yield Slice(to_display8(drawn.hu), "display8", name, spacing)
                continue
            around = tuple(
                render_plane(patient, drawn.z_mm + offset, size_px=size)[0] for offset in recipe.offsets_mm
            )
            yield Slice(drawn.hu, "hu", name, spacing, around=around)


def draw_random(recipe: Recipe, count: int = BATCH) -> Pixels:
    """(count, *recipe.shape) uint8 of noise, plain black and plain white: what no scanner makes."""
    pixels = np.random.default_rng(5).integers(0, 256, (count, *recipe.shape), dtype=np.uint8)
    pixels[0], pixels[1] = 0, 255
    return pixels


Writer = Callable[[Path, ExportRecord], None]
"""Writes the network with a record to a path."""


_EPOCH = (1980, 1, 1, 0, 0, 0)  # no time in the archive: the same model is the same bytes


def prepare_writer(
    checkpoint: Checkpoint, to: ExportFormat, precision: ExportPrecision, calibration: Material | None
) -> Writer:
    """Convert the network once; what is given back writes it, with whatever record, as often as is needed.

    Args:
        checkpoint: Whose network; it must lie on the CPU.
        to: Format.
        precision: int8 quantises the graph; bf16 is a matter of how it is run.
        calibration: Training slices, for int8.

    Raises:
        MissingExtraError: packages of the extra `export` are not installed.
    """
    graph = make_onnx(checkpoint.model, checkpoint.header.recipe)
    if to == "onnx":
        return lambda path, record: _write_onnx(graph, path, record)
    openvino = import_openvino()
    model = openvino.convert_model(io.BytesIO(graph))
    if precision == "int8":
        assert calibration is not None
        model = quantise(model, calibration)
    return lambda path, record: _write_openvino(openvino, model, path, record)


def _write_onnx(graph: bytes, path: Path, record: ExportRecord) -> None:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("export to ONNX", "export") from error
    model = onnx.load_from_string(graph)
    entry = model.metadata_props.add()
    entry.key, entry.value = RECORD_KEY, record.model_dump_json()
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _write_openvino(openvino: Any, model: Any, path: Path, record: ExportRecord) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # In fp16, as OpenVINO would store them, weights would fail the gate of fp32.
        openvino.save_model(model, str(Path(folder) / XML_FILE), compress_to_fp16=False)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo(RECORD_FILE, _EPOCH), record.model_dump_json())
            for name in (XML_FILE, BIN_FILE):
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), (Path(folder) / name).read_bytes())


def quantise(model: Any, calibration: Material) -> Any:
    """Post-training quantisation of weights and activations to int8 by NNCF; the ranges are those of the slices.

    Args:
        model: Of OpenVINO, with its constants folded: biases and filters that are computed are not seen as such.
        calibration: Slices.

    Raises:
        MissingExtraError: NNCF is not installed.
    """
    refuse_telemetry()
    # What NNCF prints are its bars; ours are on the screen.
    with _hush_warnings(), contextlib.redirect_stdout(io.StringIO()):
        try:
            import nncf
            from nncf.quantization.range_estimator import RangeEstimatorParametersSet
        except ImportError as error:
            raise MissingExtraError("export in int8", "export") from error
        nncf.set_log_level("ERROR")
        ids = calibration.slice_ids
        slices = nncf.Dataset(ids, lambda slice_id: calibration.read_one(slice_id)[None])
        return nncf.quantize(
            model,
            slices,
            # Activations that are not centred on zero (after ReLU6, GELU) keep their whole range.
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(ids),
            fast_bias_correction=False,
            # NNCF's own choice, the mean over slices of each one's extremes, cuts off what only some slices have:
            # near the head that is the fracture (docs/log.md).
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
            ),
        )


@contextlib.contextmanager
def _hush_warnings() -> Iterator[None]:
    """No warnings in the log meanwhile, such as that there is no CUDA, which nothing here needs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


CALIBRATION_SLICES = 300
CHECKED_SLICES = {"fp32": 64, "bf16": 2000, "int8": 2000}
"""At most; AUROC and its interval need more than logits do."""

_PACKAGES = ("torch", "timm", "onnx", "onnxruntime", "openvino", "nncf")


@dataclass(frozen=True)
class ExportPlan:
    """What is asked for.

    Attributes:
        to, precision: Format, and what it is to be run in.
        check_on: Slices for the gate; None is a drawn phantom, which does for fp32 only.
        check_split: See `choose_checked`.
        calibrate_on: For int8: its train split gives the calibration.
        seed: Of the draws of slices.
        bounds: None is `BOUNDS`.
    """

    to: ExportFormat
    precision: ExportPrecision = "fp32"
    check_on: Manifest | None = None
    check_split: str | None = None
    calibrate_on: Manifest | None = None
    seed: int = 0
    bounds: Bounds | None = None

    def check(self) -> None:
        """Raise `InputError` where the plan cannot be."""
        if self.precision != "fp32" and self.to != "openvino":
            raise InputError(
                f"{self.to} is exported in fp32 only",
                where=f"--precision {self.precision}",
                fix="export to openvino, which runs bf16 and int8 on CPUs",
            )
        if self.precision == "int8" and self.calibrate_on is None:
            raise InputError(
                "int8 is calibrated on training slices, and none are named",
                where="--precision int8",
                fix="name the manifest of the training by --calibrate-on",
            )
        if self.precision != "fp32" and self.check_on is None and self.calibrate_on is None:
            raise InputError(
                f"{self.precision} is held to the AUROC of labelled slices, and none are named",
                where=f"--precision {self.precision}",
                fix="name a manifest with labelled slices that were not learned from by --check-on",
            )
        if self.precision == "bf16" and not has_bf16(import_openvino().Core()):
            raise InputError(
                "this CPU does not compute in bf16, so the gate cannot measure it",
                where="--precision bf16",
                fix="export on a machine that does, or in fp32",
            )


def export_checkpoint(checkpoint: Checkpoint, plan: ExportPlan, output: Path) -> ExportRecord:
    """Export to one file, which is there at the end only if it passed the gate; an older one of its name stays if not.

    Args:
        checkpoint: It is moved to the CPU.
        plan: What is asked for.
        output: The file.

    Returns:
        The record that lies in the file, with what the gate found on each engine that is installed for the format.

    Raises:
        ExportError: the gate is not passed; the message says by how much.
        InputError: the plan cannot be, or there are no slices for it.
        MissingExtraError: packages of the extra `export` are not installed.
        OutputError: the file cannot be written.
    """
    plan.check()
    header, recipe = checkpoint.header, checkpoint.header.recipe
    calibration = None
    if plan.precision == "int8" and plan.calibrate_on is not None:
        calibration = choose_calibration(plan.calibrate_on, recipe, count=CALIBRATION_SLICES, seed=plan.seed)
    material = _choose_material(plan, recipe)
    reference = TorchRuntime(checkpoint.model, "cpu")
    record = ExportRecord(
        header=header,
        source_hash=checkpoint.hash,
        format=plan.to,
        precision=plan.precision,
        features=reference.features,
        familiarity=StoredOod.store(checkpoint.ood) if checkpoint.ood else None,
        calibrated_on=calibration.origin if calibration else None,
        versions=_find_versions(),
    )
    write = prepare_writer(checkpoint, plan.to, plan.precision, calibration)
    with atomic_file(output) as temporary:
        write(temporary, record)
        results = [
            _check(reference, engine, checkpoint, plan, material)
            for engine in _start_engines(temporary, record)
        ]
        _refuse_failed(results, record)
        record = record.model_copy(
            update={"gate": tuple(result.model_dump(mode="json") for result in results)}
        )
        # Only what the record says differs from the file that was checked.
        write(temporary, record)
        read_record(temporary, plan.to)
    return record


def _choose_material(plan: ExportPlan, recipe: Recipe) -> Material | None:
    manifest = plan.check_on or plan.calibrate_on
    if manifest is None:
        return None
    return choose_checked(
        manifest,
        recipe,
        plan.check_split,
        labelled=plan.precision != "fp32",
        limit=CHECKED_SLICES[plan.precision],
        seed=plan.seed,
    )


def _start_engines(path: Path, record: ExportRecord) -> list[Runtime]:
    """Every installed engine that would run such a file: each may be the one that a user has."""
    if record.format == "onnx":
        packages: dict[RuntimeName, str] = {"openvino": "openvino", "onnx": "onnxruntime"}
        names = [name for name, package in packages.items() if is_installed(package)]
        if not names:
            raise MissingExtraError("the check of an export to ONNX", "export")
        # Engines tell ONNX by the name of its file, and this one has not got its name yet.
        return [start_engine(path.read_bytes(), record, name, record.precision, "gate") for name in names]
    return [start_engine(path, record, record.format, record.precision, "gate")]


def _check(
    reference: Runtime, engine: Runtime, checkpoint: Checkpoint, plan: ExportPlan, material: Material | None
) -> GateResult:
    recipe = checkpoint.header.recipe
    batches = material.read_batches() if material else [draw_phantom(recipe)]
    random = draw_random(recipe) if plan.precision == "fp32" else None
    checked = answer_both(reference, engine, batches, random, checkpoint.ood)
    return judge(
        checked,
        checkpoint.header,
        plan.bounds or BOUNDS[plan.precision],
        engine=engine.about.rpartition(": ")[0],
        origin=material.origin if material else f"{checked.slices} slices of the phantom",
        table=material.table if material else None,
        manifest_hash=material.manifest.hash if material else "phantom",
    )


def _refuse_failed(results: Sequence[GateResult], record: ExportRecord) -> None:
    if failed := [result for result in results if result.failures]:
        raise ExportError(
            "the export fails its gate and was deleted: "
            + "; ".join(f"{result.engine}: {', '.join(result.failures)}" for result in failed),
            where=f"{record.header.spec.name} as {record.format} in {record.precision}",
            fix="export it in another precision or format",
        )


def _find_versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
