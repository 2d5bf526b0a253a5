"""From files to answers by a model that is loaded: studies one by one, or a set of slices as one table.

Scores need none of evaluation, explanation, DICOM output and pages; these are loaded where they are asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.core.answers import StudyAnswer
from cspine.core.errors import InputError
from cspine.core.files import compute_hash, write_text
from cspine.core.predictions import average_predictions, compute_sigmoid
from cspine.core.progress import Silent, Watcher, count_steps
from cspine.core.types import Domain, Slice
from cspine.ct.annotations import CtSeries, LabelTable, Segmentations, read_label_table, read_rsna_labels
from cspine.ct.importing import read_imported
from cspine.ct.intake import IntakePolicy, read_policy
from cspine.ct.series import Format, ReadOptions, read_series, recognise_format
from cspine.data.images import read_image
from cspine.data.layouts import MANIFEST_NAME, Classes, import_dataset
from cspine.data.manifest import Manifest, is_manifest, read_manifest
from cspine.inference.answers import AnswersFolder, StudyAnswers, evaluate_answers
from cspine.inference.engines import RuntimeName
from cspine.inference.predictor import Predictor, label_logits
from cspine.inference.study import EarlyScorer, StudyPredictor, answer_all

if TYPE_CHECKING:
    from cspine.dicom_out.source import Deidentify

PAGE_NAME, METRICS_NAME = "answers.html", "metrics.json"
EXPLAIN_METHODS = ("gradcam", "occlusion")


@dataclass(frozen=True)
class StudyOptions:
    """How studies are read, what is known of them, and what is made beside their answers.

    Attributes:
        policy: A TOML file: what intake refuses, corrects or warns of.
        labels: A table of labels by slice, series or study, to compare with.
        segmentations: A folder of segmented vertebrae, `<UID>.nii.gz` or TotalSegmentator's.
        split: Of imported sets, only this one; None is all.
        explain: "gradcam" or "occlusion": draw and score where the model looks; None does not. Needs an output folder,
            as the next three do.
        dicom_out: Write DICOM objects.
        deidentify: A file with the key by which their identity is replaced; None keeps it.
        resume: Continue with the answers that the output folder holds.
    """

    policy: Path | None = None
    labels: Path | None = None
    segmentations: Path | None = None
    split: str | None = None
    explain: str | None = None
    dicom_out: bool = False
    deidentify: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class StudySource:
    """A CT source of a format, or an imported set with its manifest."""

    path: Path
    format: Format | None
    manifest: Path | None = None


def load(*paths: str | Path, runtime: RuntimeName = "auto") -> FractureModel:
    """Load a checkpoint (`.safetensors`) or what `cspine export` wrote; several answer by their mean.

    Args:
        paths: One or more files.
        runtime: "torch", "onnx" or "openvino"; "auto" takes torch for a checkpoint, else the fastest that is installed.

    Raises:
        CheckpointError: a file cannot be read, or does not run on that engine.
        MissingExtraError: the engine is not installed.
    """
    if not paths:
        raise InputError("there is no model to answer", fix="name a checkpoint")
    names = tuple(Path(path).name for path in paths)
    return FractureModel(tuple(Predictor.load(Path(path), runtime=runtime) for path in paths), names)


@dataclass(frozen=True)
class FractureModel:
    """One model, or several that answer by their mean.

    Attributes:
        predictors: At least one, all for the same kind of slices.
        names: Of their files.
    """

    predictors: tuple[Predictor, ...]
    names: tuple[str, ...]

    def __repr__(self) -> str:
        return f"FractureModel({', '.join(self.describe())})"

    def describe(self) -> dict[str, str]:
        """Name of each model to the name of its file."""
        specs = [one.header.spec.name for one in self.predictors]
        return {
            spec if specs.count(spec) == 1 else f"{spec} ({place})": name
            for place, (spec, name) in enumerate(zip(specs, self.names, strict=True), start=1)
        }

    def predict(
        self,
        source: str | Path | Sequence[str | Path],
        output: str | Path | None = None,
        options: StudyOptions | None = None,
        watcher: Watcher | None = None,
    ) -> StudyAnswers:
        """Answer about CT studies.

        Args:
            source: DICOM (file, folder, DICOMDIR, zip), NIfTI, the RSNA 2022 folder, an imported set; one or several.
            output: A new folder for tables, page, pictures and DICOM objects; None keeps the answers in memory alone.
            options: How studies are read and what else is made.
            watcher: Told about progress.

        Raises:
            InputError: a source, option or the folder cannot be used; these are slices and no studies.
            MissingExtraError: a package that an option needs is not installed.
        """
        paths = [source] if isinstance(source, str | Path) else list(source)
        sources = find_study_sources([Path(path) for path in paths])
        if sources is None:
            raise InputError(
                "these are slices, and no CT studies", where=str(paths[0]), fix="use predict_slices"
            )
        options = options or StudyOptions()
        if output is None and (options.explain or options.dicom_out or options.resume):
            raise InputError(
                "explain, dicom_out and resume write into a folder, and none is named", fix="name the output"
            )
        job = _Job(self, sources, None if output is None else Path(output), options)
        return job.run(watcher or Silent())

    def predict_slices(
        self,
        source: str | Path | Manifest,
        split: str | None = None,
        watcher: Watcher | None = None,
    ) -> pl.DataFrame:
        """Score the slices of a set.

        Args:
            source: A manifest, a table of labels, or a folder of the class folders `fracture` and `normal`.
            split: Only this one.
            watcher: Told about progress.

        Returns:
            A table of predictions (`core.predictions.SCHEMA`), which `evaluate` takes.

        Raises:
            InputError: the source cannot be used; the model takes another kind of slices.
        """
        watcher = watcher or Silent()
        manifest = source if isinstance(source, Manifest) else import_dataset(Path(source))[0]
        for predictor in self.predictors:
            predictor.recipe.check_domain(manifest.domain, str(source))
        chosen = manifest.select(split) if split else manifest
        return average_predictions([_score(predictor, chosen, watcher) for predictor in self.predictors])

    def predict_proba(
        self, slices: npt.NDArray[Any] | str | Path | Sequence[Slice | str | Path]
    ) -> npt.NDArray[np.float64]:
        """Return (n, 2) probabilities of single slices, normal and fracture, as scikit-learn's classifiers do.

        Args:
            slices: (H, W) or (n, H, W), uint8 of 0..255 or int16 in HU; or PNG, JPEG or TIFF files; or `Slice`s.

        Raises:
            InputError: an array of another kind.
            ImageError, RecipeError: a file cannot be read; the model takes another kind of slices.
        """
        items = _list_slices(slices)
        calibrated = [one.calibrate(one.predict_slices(items)) for one in self.predictors]
        fracture = compute_sigmoid(np.mean(calibrated, axis=0))
        return np.stack([1 - fracture, fracture], axis=1)


def _list_slices(slices: npt.NDArray[Any] | str | Path | Sequence[Slice | str | Path]) -> list[Slice]:
    if not isinstance(slices, np.ndarray):
        given = [slices] if isinstance(slices, str | Path) else slices
        return [
            one if isinstance(one, Slice) else read_image(Path(one), slice_id=str(number))
            for number, one in enumerate(given)
        ]
    if slices.ndim not in (2, 3) or slices.dtype not in (np.uint8, np.int16):
        raise InputError(
            f"slices are (H, W) or (n, H, W) of uint8 or int16, not {slices.shape} of {slices.dtype}",
            fix="give grey values of 0..255 as uint8, or Hounsfield units as int16",
        )
    domain: Domain = "display8" if slices.dtype == np.uint8 else "hu"
    arrays = slices[None] if slices.ndim == 2 else slices
    return [Slice(pixels, domain, str(number)) for number, pixels in enumerate(arrays)]


def _score(predictor: Predictor, manifest: Manifest, watcher: Watcher) -> pl.DataFrame:
    slice_ids, offsets_mm = manifest.slice_ids, predictor.recipe.offsets_mm
    count = len(slice_ids)
    watcher.start("Predicting", count)
    logits = predictor.score_read(
        count, lambda index: manifest.read_slice(slice_ids[index], offsets_mm), count_steps(watcher, count)
    )
    watcher.finish(f"{count:,} slices; {predictor.runtime.about}")
    return label_logits(manifest.table, slice_ids, logits, predictor, manifest)


def find_study_sources(paths: Sequence[Path], *, sets: bool = True) -> list[StudySource] | None:
    """The CT studies at some paths; None where these are slices to be scored into one table.

    Args:
        paths: Files and folders.
        sets: Whether an imported set stands for the studies in it, and not for its slices.

    Raises:
        InputError: a path does not exist, or the two kinds are mixed.
    """
    found = [_recognise(path, sets) for path in paths]
    if not any(found):
        return None
    for path, source in zip(paths, found, strict=True):
        if source is None:
            raise InputError(
                "these are no CT studies, and others of the paths are",
                where=str(path),
                fix="predict slices and studies by two commands",
            )
    return [source for source in found if source is not None]


def _recognise(path: Path, sets: bool) -> StudySource | None:
    if not path.exists():
        raise InputError("no such file or folder", where=str(path), fix="name a file or a folder")
    manifest = path / MANIFEST_NAME if path.is_dir() else path
    if manifest.is_file() and is_manifest(manifest):
        return StudySource(path, None, manifest) if sets else None
    source_format = recognise_format(path)
    return None if source_format is None else StudySource(path, source_format)


def _read_set(path: Path, split: str | None) -> Manifest:
    manifest = read_manifest(path)
    if manifest.table["series_uid"].null_count() == len(manifest):
        raise InputError(
            "no slice names the series that it belongs to: there are no studies to answer",
            where=str(path),
            fix="score the slices: -o predictions.parquet",
        )
    return manifest if split is None else manifest.select(split)


@dataclass
class _Job:
    """One prediction over studies: what is opened for it, and which series it met.

    Attributes:
        taken: Keys of the series that were met.
        met_again: Those that came again, and were left out.
        groups: Patient ID, in memory alone, to the group of the patient's studies.
    """

    model: FractureModel
    sources: Sequence[StudySource]
    output: Path | None
    options: StudyOptions
    taken: set[str] = field(default_factory=set)
    met_again: list[str] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)

    def run(self, watcher: Watcher) -> StudyAnswers:
        options, predictors = self.options, self.model.predictors
        if options.split is not None and all(source.manifest is None for source in self.sources):
            raise InputError(
                "only an imported set has splits, and none is named", where="--split", fix="leave it out"
            )
        policy = read_policy(options.policy) if options.policy else IntakePolicy()
        labels = read_label_table(options.labels, Classes("fracture", "normal")) if options.labels else None
        segmentations = Segmentations(options.segmentations) if options.segmentations else None
        manifests = {one.path: _read_set(one.manifest, options.split) for one in self.sources if one.manifest}
        deidentify = _read_artifacts_key(options)
        studies = StudyPredictor(predictors)
        make_extras, folder = None, None
        if self.output is not None:
            if options.explain or options.dicom_out:
                from cspine.comparison.artifacts import prepare_artifacts

                make_extras = prepare_artifacts(
                    self.output, predictors[0], options.explain, options.dicom_out, deidentify, policy
                )
            settings = self._list_settings(studies, policy, labels, deidentify)
            folder = AnswersFolder.open(self.output, settings, resume=options.resume)
        before = dict(folder.groups) if folder else {}

        def skip(key: str, patient_id: str | None) -> bool:
            # Not what is answered: of what is read ahead nothing is yet.
            if key in self.taken:
                self.met_again.append(key)
                return True
            self.taken.add(key)
            if key in before and patient_id:
                self.groups.setdefault(patient_id, before[key])
            return key in before

        def list_series(scorer: EarlyScorer) -> Iterator[CtSeries]:
            for source in self.sources:
                if source.format is None:
                    yield from read_imported(manifests[source.path], str(source.path), skip)
                    continue
                yield from read_series(
                    source.path,
                    source.format,
                    policy,
                    read_rsna_labels(source.path) if source.format == "rsna" else labels,
                    segmentations,
                    ReadOptions(skip=skip, on_begin=scorer.begin),
                )

        resumed = f", {len(before):,} answered before" if before else ""
        watcher.start("Answering", 0)
        answered, counts = [], Counter[str]()
        try:
            with EarlyScorer(studies) as scorer:
                series = list_series(scorer)
                for one, done, total in answer_all(series, scorer, make_extras, self.groups):
                    if folder is None:
                        answered.append(one)
                    else:
                        folder.add(one)
                    counts[one.answer.call] += 1
                    note = ", ".join(f"{count} {call}" for call, count in counts.items())
                    watcher.advance(done, total, note)
        finally:
            # What is answered can be read, whatever came between.
            if folder is not None:
                answered = folder.write_tables()
        engines = dict.fromkeys(one.runtime.about for one in predictors)
        watcher.finish(f"{len(answered):,} series{resumed}; {'; '.join(engines)}")
        evaluation = evaluate_answers(answered)
        if evaluation is not None:
            evaluation = evaluation.model_copy(update={"model": " + ".join(self.model.describe())})
        notes = tuple(_list_losses(self.met_again, None if before else labels, segmentations))
        found = StudyAnswers(tuple(answered), evaluation, notes, self.output)
        if folder is not None:
            _write_page(found, folder.path, self.model.describe())
        return found

    def _list_settings(
        self,
        studies: StudyPredictor,
        policy: IntakePolicy,
        labels: LabelTable | None,
        deidentify: Deidentify | None,
    ) -> dict[str, Any]:
        """What the answers of a folder depend on."""
        options = self.options
        return {
            "checkpoints": list(studies.checkpoint_hashes),
            "runtimes": [one.runtime.name for one in studies.predictors],
            "policy": policy.model_dump(mode="json"),
            "sources": [str(source.path.absolute()) for source in self.sources],
            "split": options.split,
            "labels": None if labels is None else compute_hash([labels.key, labels.rows]),
            "segmentations": str(options.segmentations.absolute()) if options.segmentations else None,
            "explain": options.explain,
            "dicom_out": options.dicom_out,
            # Under another key one patient would get two identities.
            "deidentified": None if deidentify is None else deidentify.derive("settings").hex()[:16],
        }


def _read_artifacts_key(options: StudyOptions) -> Deidentify | None:
    """The key of DICOM objects; None where none is named. Refuses options that do not go together."""
    if options.explain is not None and options.explain not in EXPLAIN_METHODS:
        raise InputError(
            f"no such method: {options.explain}",
            where="--explain",
            fix=f"choose one of {', '.join(EXPLAIN_METHODS)}",
        )
    if options.deidentify is None:
        return None
    if not options.dicom_out:
        raise InputError(
            "only DICOM objects have an identity to replace", where="--deidentify", fix="add --dicom-out"
        )
    from cspine.dicom_out.source import read_key

    return read_key(options.deidentify)


def _list_losses(
    met_again: Sequence[str], labels: LabelTable | None, segmentations: Segmentations | None
) -> Iterator[str]:
    """What was named and came to nothing, in words."""
    if met_again:
        yield (
            f"{len(met_again):,} series were left out, for one of the same UID is answered: the files of a series "
            "belong into one of the paths"
        )
    if labels is not None and not labels.used:
        yield f"no {labels.key} of the table of labels is one of these studies: nothing is compared"
    if segmentations is not None and segmentations.unusable:
        count, first = len(segmentations.unusable), segmentations.unusable[0]
        yield f"{count:,} of the segmentations cannot be used, so these studies have no levels; the first: {first}"


def _write_page(found: StudyAnswers, folder: Path, models: dict[str, str]) -> None:
    from cspine.report.answers_page import AnswersPage, write_answers_page

    answered = found.answered
    if found.evaluation is not None:
        write_text(folder / METRICS_NAME, found.evaluation.model_dump_json(indent=2))
    pointing, pictures = None, {}
    if any(one.pointing for one in answered) or (folder / "pictures").is_dir():
        from cspine.comparison.artifacts import evaluate_answers_pointing, read_pictures

        pointing, pictures = evaluate_answers_pointing(answered), read_pictures(folder, answered)
    write_answers_page(
        AnswersPage(
            answers=[one.answer for one in answered if one.answer.intake.slices_found],
            rows=[one.answer.intake for one in answered],
            models=models,
            truth={one.key: one.truth for one in answered if one.truth is not None},
            evaluation=found.evaluation,
            pointing=pointing,
            pictures=pictures,
        ),
        folder / PAGE_NAME,
    )


def list_calls(answers: Sequence[StudyAnswer]) -> Counter[str]:
    """How often each call was made."""
    return Counter(answer.call for answer in answers)
