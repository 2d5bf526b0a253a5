"""`cspine export`: convert, hold the result to the checkpoint, and only then let it have its name."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cspine.data.manifest import Manifest
from cspine.errors import ExportError, InputError, MissingExtraError
from cspine.export.gate import BOUNDS, Bounds, GateResult, answer_both, judge
from cspine.export.material import Material, choose_calibration, choose_checked, draw_phantom, draw_random
from cspine.export.write import prepare_writer
from cspine.files import atomic_file
from cspine.inference.exported import (
    ExportFormat,
    ExportPrecision,
    ExportRecord,
    StoredFamiliarity,
    read_record,
)
from cspine.inference.load import start_engine
from cspine.inference.runtimes import Runtime, RuntimeName, has_bf16, import_openvino, is_installed
from cspine.inference.torch_runtime import TorchRuntime
from cspine.models.checkpoint import Checkpoint
from cspine.preprocess import Recipe

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
        familiarity=StoredFamiliarity.store(checkpoint.familiarity) if checkpoint.familiarity else None,
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
    checked = answer_both(reference, engine, batches, random, checkpoint.familiarity)
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
