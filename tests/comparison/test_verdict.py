"""What the report of a comparison opens with, on sets whose faults are planted and on one that has none."""

from __future__ import annotations

import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cspine.auditing.findings import CODES, Finding, decide_verdict, list_reasons
from cspine.comparison.auditing import audit_prepared, gather_findings, score_models
from cspine.comparison.prepare import prepare_data
from cspine.core.predictions import make_predictions
from cspine.core.progress import Silent
from cspine.experiment import Experiment
from cspine.metrics.intervals import IntervalOptions
from cspine.report.report import read_results, write_report
from tests.auditing.sets import make_phantom
from tests.report.builders import make_results

OPTIONS = IntervalOptions(60)
SEES, GUESSES = 8.0, 0.0


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("verdict") / "phantom", patients=40)


def edit_labels(phantom: Path, folder: Path, *, leak: bool = False, patients: bool = True) -> Path:
    """A copy of the phantom with a slice of test put into train as well, or without patients."""
    shutil.copytree(phantom, folder)
    labels = pl.read_csv(folder / "labels.csv", infer_schema=False)
    if leak:
        row = labels.filter(pl.col("split") == "test").row(0, named=True)
        shutil.copy(folder / row["path"], folder / "again.png")
        row |= {"path": "again.png", "split": "train", "mask_path": None, "patient_id": "another"}
        row |= {name: "again" for name in ("slice_id", "study_uid", "series_uid", "source_id") if name in row}
        extra = pl.DataFrame({name: [row[name]] for name in labels.columns}, schema=labels.schema)
        labels = pl.concat([labels, extra])
    if not patients:
        labels = labels.drop("patient_id")
    labels.write_csv(folder / "labels.csv")
    return folder


def report(root: Path, folder: Path, separation: float, *, audit: bool = True, **splits: str) -> str:
    """Audit a set, take up a model whose classes lie `separation` apart, and write its report; its words."""
    experiment = Experiment.model_validate(
        {
            "name": "t",
            "title": "T",
            "data": {"root": str(root)},
            "splits": splits,
            "models": {"small": {"backbone": "test_resnet", "weights": "none"}},
        }
    )
    prepared = prepare_data(experiment, Silent())
    table = prepared.table(prepared.reported)
    labels = table["label"].to_numpy()
    noise = np.random.default_rng(3).normal(size=(2, len(table)))
    origin = {"recipe_hash": "r", "manifest_hash": "m"}
    network, neighbour = (
        make_predictions(
            table,
            table["slice_id"].to_list(),
            noise[place] + apart * (labels - 0.5),
            model=name,
            checkpoint_hash=name,
            **origin,
        )
        for place, (name, apart) in enumerate((("small", separation), ("neighbour", 0.0)))
    )
    scores = score_models({"small": network}, {"neighbour": ("sees nothing", neighbour)}, 0.5, OPTIONS)
    # Beside the set, so that a second report of it need not audit it again.
    found = audit_prepared(experiment, prepared, root.parent, Silent()) if audit else None
    findings = gather_findings(None, scores, found, experiment, prepared)
    made = make_results()
    results = made.model_copy(
        update={
            "verdict": decide_verdict(findings),
            "findings": findings,
            "audit": found,
            "notes": (),
            **dict.fromkeys(
                ("models", "baselines", "in_use", "sizes", "robustness", "subgroups", "samples"), ()
            ),
        }
    )
    html = write_report(results, folder).read_text(encoding="utf-8")
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def list_codes(folder: Path) -> list[str]:
    return list(dict.fromkeys(one.code for one in list_reasons(read_findings(folder))))


def read_findings(folder: Path) -> tuple[Finding, ...]:
    findings = read_results(folder).findings
    assert findings is not None
    return findings


def test_a_good_model_on_a_clean_set_is_sound(phantom: Path, tmp_path: Path) -> None:
    text = report(phantom, tmp_path, SEES)
    assert list_codes(tmp_path) == []
    assert "Before you read the numbers Verdict: sound." in text
    assert "No finding speaks against it." in text
    assert text.count("which change nothing in the verdict") == bool(read_findings(tmp_path))


def test_a_copy_on_both_sides_is_the_reason_for_no_evidence(phantom: Path, tmp_path: Path) -> None:
    text = report(edit_labels(phantom, tmp_path / "set", leak=True), tmp_path / "run", SEES)
    assert list_codes(tmp_path / "run") == ["copies-across-splits", "file-across-splits"]
    opening = text[
        text.index("Before you read the numbers") : text.index("Comparison", text.index("Verdict"))
    ]
    assert opening.startswith("Before you read the numbers Verdict: not evidence.")
    assert "Invalidates 1 slice stands as copies in both train and test" in opening
    assert f"What to do {CODES['copies-across-splits'].remedy}" in opening
    assert [one.files for one in read_findings(tmp_path / "run")] == [()] * len(
        read_findings(tmp_path / "run")
    )


def test_a_model_that_guesses_on_a_clean_set_has_shown_nothing(phantom: Path, tmp_path: Path) -> None:
    text = report(phantom, tmp_path, GUESSES)
    assert list_codes(tmp_path) == ["no-better-than-a-baseline"]
    assert "Verdict: not evidence." in text
    assert "Invalidates This split does not show that small learned fractures" in text


def test_selection_on_what_is_reported_is_the_one_reason(phantom: Path, tmp_path: Path) -> None:
    report(phantom, tmp_path, SEES, selection="test", reported="test")
    assert list_codes(tmp_path) == ["selection-on-reported"]


def test_a_clean_set_without_patients_is_limited(phantom: Path, tmp_path: Path) -> None:
    text = report(edit_labels(phantom, tmp_path / "set", patients=False), tmp_path / "run", SEES)
    assert list_codes(tmp_path / "run") == ["unknown-patients"]
    assert "Verdict: limited." in text
    assert f"What to do {CODES['unknown-patients'].remedy}" in text


def test_without_an_audit_it_is_limited_for_nobody_looked(phantom: Path, tmp_path: Path) -> None:
    report(phantom, tmp_path, SEES, audit=False)
    assert list_codes(tmp_path) == ["not-audited"]
