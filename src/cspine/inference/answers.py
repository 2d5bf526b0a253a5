"""A folder of answers: one file a series, written as soon as it is answered, and the tables made of them.

    settings.json     models, policy and whatever else the answers depend on; going on with others is refused
    series/NNNN.json  one a series: the answer, its slices, how it was read, what is known of it
    studies.parquet, .csv, .json    one row a series
    slices.parquet, .csv            one row a slice
    intake.json       a row for every series, and for every file that could not be used

No file holds a patient's id or name. `group` says which studies are of one patient, by the first of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import polars as pl

from cspine.core.answers import Abstention, AbstentionReason, IntakeRow, StudyAnswer
from cspine.core.errors import InputError
from cspine.core.files import atomic_file, compute_hash, write_json, write_parquet
from cspine.core.html import show_table
from cspine.core.predictions import ORIGIN, SCHEMA
from cspine.data.tables import VERTEBRAE

if TYPE_CHECKING:
    from cspine.core.estimates import EvaluationResult

SETTINGS_NAME, SERIES_FOLDER, STUDIES_NAME, SLICES_NAME, INTAKE_NAME = (
    "settings.json",
    "series",
    "studies",
    "slices",
    "intake.json",
)
_LEAST_OF_A_CLASS = 2
_FIX = "name a new folder with -o"

STUDIES_SCHEMA = pl.Schema(
    {
        "study_uid": pl.String,
        "series_uid": pl.String,
        "source": pl.String,
        "group": pl.String,
        "call": pl.String,
        "prob": pl.Float64,
        "logit": pl.Float64,
        "threshold": pl.Float64,
        "stands_for_study": pl.Boolean,
        "truth": pl.Int8,
        "reasons": pl.String,
        "slices": pl.Int32,
        "decision": pl.String,
        "intake_reasons": pl.String,
        "distance": pl.Float64,
        "distance_limit": pl.Float64,
        **{vertebra: pl.Float64 for vertebra in VERTEBRAE},
    }
)
SLICES_SCHEMA = pl.Schema(
    {
        "study_uid": pl.String,
        "series_uid": pl.String,
        "slice_id": pl.String,
        "position_mm": pl.Float64,
        "vertebra_level": pl.String,
        "logit": pl.Float64,
        "prob": pl.Float64,
        "carries": pl.Boolean,
    }
)


@dataclass(frozen=True)
class Answered:
    """An answer as the folder keeps it.

    Attributes:
        answer: Its intake names no patient.
        truth: 1 or 0 where it is known.
        group: Studies of one patient share it: the key of the first of them.
        pointing: Slice id to the scores of its map, where maps were made and a fracture's place is known.
    """

    answer: StudyAnswer
    truth: int | None
    group: str
    pointing: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its series, or where it was read from."""
        return self.answer.intake.series_uid or self.answer.intake.source


@dataclass(frozen=True, repr=False)
class StudyAnswers(Sequence[StudyAnswer]):
    """The answers of one prediction, ordered by study and series where they were written into a folder.

    Attributes:
        answered: Each with what is known of the study.
        evaluation: Of the studies whose truth is known; None where there are fewer than two of a class.
        notes: What was named and came to nothing, in words.
        folder: Where tables, page and pictures are; None where nothing was written.
    """

    answered: tuple[Answered, ...]
    evaluation: EvaluationResult | None = None
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    @overload
    def __getitem__(self, index: int) -> StudyAnswer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[StudyAnswer]: ...
    def __getitem__(self, index: int | slice) -> StudyAnswer | Sequence[StudyAnswer]:
        answers = tuple(one.answer for one in self.answered)
        return answers[index]

    def __len__(self) -> int:
        return len(self.answered)

    def __repr__(self) -> str:
        counts = Counter(answer.call for answer in self)
        return f"StudyAnswers({len(self)} series: {', '.join(f'{n} {call}' for call, n in counts.items())})"

    def _repr_html_(self) -> str:
        columns = ("study_uid", "series_uid", "call", "prob", "threshold", "truth", "reasons")
        return show_table(columns, self.to_frame().select(columns).iter_rows())

    def to_frame(self) -> pl.DataFrame:
        """Return one row a series, as in `studies.csv`."""
        return tabulate_studies(self.answered)

    def to_slices(self) -> pl.DataFrame:
        """Return one row a slice, as in `slices.csv`."""
        return tabulate_slices(self.answered)


@dataclass
class AnswersFolder:
    """See the head of this module.

    Attributes:
        path: The folder.
        done: Keys of the series that are answered.
        groups: Keys of those that were when the folder was opened, to their groups.
    """

    path: Path
    done: set[str] = field(default_factory=set)
    groups: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any], *, resume: bool) -> AnswersFolder:
        """Begin a folder, or go on with one.

        Raises:
            InputError: it holds answers and `resume` is not asked for; or it holds something else; or its answers were
                made with other settings.
            OutputError: it cannot be written.
        """
        path = Path(path)
        marker = path / SETTINGS_NAME
        if path.exists() and not path.is_dir():
            raise InputError("this is a file, and answers are a folder", where=str(path), fix=_FIX)
        if marker.is_file():
            if not resume:
                raise InputError(
                    "the folder holds answers already", where=str(path), fix=f"add --resume, or {_FIX}"
                )
            if _read_json(marker) != json.loads(json.dumps(settings)):
                raise InputError(
                    "the answers there were made with other models, engines, policy, labels or sources",
                    where=str(path),
                    fix=_FIX,
                )
        elif path.is_dir() and any(path.iterdir()):
            raise InputError("the folder is not empty", where=str(path), fix=_FIX)
        else:
            (path / SERIES_FOLDER).mkdir(parents=True, exist_ok=True)
            write_json(marker, settings)
        folder = cls(path)
        folder.groups = {str(record["key"]): str(record["group"]) for record in folder._read_all()}
        folder.done = set(folder.groups)
        return folder

    def add(self, answered: Answered) -> None:
        """Keep an answer, atomically.

        Raises:
            OutputError: it cannot be written.
        """
        answer = answered.answer
        record = {
            "key": answered.key,
            "truth": answered.truth,
            "group": answered.group,
            "pointing": answered.pointing,
            "answer": answer.as_dict(),
            "slices": {
                "slice_ids": answer.slice_ids,
                "positions_mm": answer.positions_mm.tolist(),
                "logits": answer.logits.tolist(),
                "probs": answer.probs.tolist(),
                "levels": answer.levels,
                "carrying": answer.key_slices,
            },
            "intake": answer.intake.as_dict(),
        }
        (self.path / SERIES_FOLDER).mkdir(exist_ok=True)
        write_json(self._place(answered.key), record)
        self.done.add(answered.key)

    def _place(self, key: str) -> Path:
        return self.path / SERIES_FOLDER / f"{compute_hash(key)}.json"

    def _read_all(self) -> list[dict[str, Any]]:
        return [_read_json(path) for path in sorted((self.path / SERIES_FOLDER).glob("*.json"))]

    def read(self) -> list[Answered]:
        """All answers, ordered by study and series.

        Raises:
            InputError: a file is damaged.
        """
        found = [_take_up(record) for record in self._read_all()]
        return sorted(found, key=lambda one: (one.answer.intake.study_uid or "", one.key))

    def write_tables(self) -> list[Answered]:
        """Make the tables of the answers that are there, atomically each; returns these answers.

        Raises:
            OutputError: a table cannot be written.
        """
        found = self.read()
        first = choose_for_studies(found)
        tables = {STUDIES_NAME: tabulate_studies(found), SLICES_NAME: tabulate_slices(found)}
        for name, table in tables.items():
            write_parquet(self.path / f"{name}.parquet", table)
            with atomic_file(self.path / f"{name}.csv") as temporary:
                table.write_csv(temporary)
        write_json(
            self.path / f"{STUDIES_NAME}.json",
            [
                {**one.answer.as_dict(), "truth": one.truth, "stands_for_study": one.key in first}
                for one in found
            ],
        )
        write_json(self.path / INTAKE_NAME, [one.answer.intake.as_dict() for one in found])
        return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(
            "the file is damaged", where=str(path), fix="remove it and go on with --resume"
        ) from None


def _take_up(record: dict[str, Any]) -> Answered:
    answer, slices = record["answer"], record["slices"]
    row = {name: value for name, value in record["intake"].items() if name != "decision"}
    return Answered(
        answer=StudyAnswer(
            intake=IntakeRow.model_validate(row),
            slice_ids=tuple(slices["slice_ids"]),
            positions_mm=np.array(slices["positions_mm"], np.float64),
            logits=np.array(slices["logits"], np.float64),
            probs=np.array(slices["probs"], np.float64),
            levels=tuple(slices["levels"]),
            logit=answer["logit"],
            prob=answer["prob"],
            threshold=answer["threshold"],
            key_slices=tuple(slices["carrying"]),
            level_probs=answer["level_probs"],
            abstentions=tuple(
                AbstentionReason(Abstention(one["reason"]), one["detail"]) for one in answer["abstentions"]
            ),
            distance=answer["distance"],
            distance_limit=answer["distance_limit"],
            aggregation=answer["aggregation"],
            checkpoint_hashes=tuple(answer["checkpoint_hashes"]),
        ),
        truth=record["truth"],
        group=record["group"],
        pointing=record["pointing"],
    )


def choose_for_studies(found: Sequence[Answered]) -> set[str]:
    """The series that stands for each study: one with a call before one without, then the one with most slices."""
    best: dict[str, Answered] = {}
    for one in found:
        study = one.answer.intake.study_uid or one.key
        if study not in best or _rank(one) > _rank(best[study]):
            best[study] = one
    return {one.key for one in best.values()}


def _rank(one: Answered) -> tuple[bool, bool, int]:
    return one.answer.call != "abstained", one.answer.prob is not None, len(one.answer.slice_ids)


def evaluate_answers(answered: Sequence[Answered]) -> EvaluationResult | None:
    """Of the series that stand for studies, are scored and of known truth; None with fewer than two of a class."""
    known = [one for one in answered if one.truth is not None and one.answer.prob is not None]
    first = choose_for_studies(answered) if known else set()
    known = [one for one in known if one.key in first]
    counts = Counter(one.truth for one in known)
    if min(counts[0], counts[1]) < _LEAST_OF_A_CLASS:
        return None
    from cspine.metrics.evaluation import evaluate_table

    rows: list[dict[str, Any]] = [
        {
            "slice_id": one.key,
            "patient_id": one.group,
            "study_uid": one.answer.intake.study_uid,
            "series_uid": one.key,
            "source_id": None,
            "split": None,
            "y_true": one.truth,
            "logit": one.answer.logit,
            "prob": one.answer.prob,
            **dict.fromkeys(ORIGIN, "+".join(one.answer.checkpoint_hashes)),
        }
        for one in known
    ]
    return evaluate_table(pl.DataFrame(rows, schema=SCHEMA), known[0].answer.threshold)


def tabulate_studies(found: Sequence[Answered]) -> pl.DataFrame:
    """One row a series (STUDIES_SCHEMA)."""
    first = choose_for_studies(found)
    return pl.DataFrame([_make_row(one, one.key in first) for one in found], schema=STUDIES_SCHEMA)


def tabulate_slices(found: Sequence[Answered]) -> pl.DataFrame:
    """One row a slice (SLICES_SCHEMA)."""
    return pl.concat([SLICES_SCHEMA.to_frame(), *map(_make_slices, found)])


def _make_row(one: Answered, stands: bool) -> dict[str, Any]:
    answer = one.answer
    return {
        "study_uid": answer.intake.study_uid,
        "series_uid": answer.intake.series_uid,
        "source": answer.intake.source,
        "group": one.group,
        "call": answer.call,
        "prob": answer.prob,
        "logit": answer.logit,
        "threshold": answer.threshold,
        "stands_for_study": stands,
        "truth": one.truth,
        "reasons": " ".join(str(reason.reason) for reason in answer.abstentions),
        "slices": len(answer.slice_ids),
        "decision": answer.intake.decision,
        "intake_reasons": " ".join(str(finding.reason) for finding in answer.intake.findings),
        "distance": answer.distance,
        "distance_limit": answer.distance_limit,
        **{vertebra: answer.level_probs.get(vertebra) for vertebra in VERTEBRAE},
    }


def _make_slices(one: Answered) -> pl.DataFrame:
    answer, count = one.answer, len(one.answer.slice_ids)
    key_slices = set(answer.key_slices)
    return pl.DataFrame(
        {
            "study_uid": [answer.intake.study_uid] * count,
            "series_uid": [answer.intake.series_uid] * count,
            "slice_id": answer.slice_ids,
            "position_mm": answer.positions_mm,
            "vertebra_level": answer.levels or [None] * count,
            "logit": answer.logits,
            "prob": answer.probs,
            "carries": [index in key_slices for index in range(count)],
        },
        schema=SLICES_SCHEMA,
    )
