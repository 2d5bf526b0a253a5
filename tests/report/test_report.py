"""The report: all numbers in it, nothing from outside, safe against hostile names, whole or not at all."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cspine.core.errors import InputError, OutputError
from cspine.core.estimates import Estimate
from cspine.report import report, tables
from cspine.report.calibration import draw_in_use
from cspine.report.checklists import list_card_folders
from cspine.report.figures import draw_all, list_entries
from cspine.report.report import read_results, write_report
from cspine.report.results import ComparisonResults
from cspine.report.robustness import draw_robustness
from cspine.report.text import UNDEFINED as DASH
from cspine.report.text import format_count, format_value
from tests.report.builders import UNDEFINED, make_results

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
EVIL = '"><script>alert(1)</script>\x00${{ 7*7 }}'


@pytest.fixture(scope="module")
def results() -> ComparisonResults:
    return make_results()


@pytest.fixture(scope="module")
def small(results: ComparisonResults) -> ComparisonResults:
    """One model and the baseline, for tests in which the rest would only take time."""
    kept = {"models": results.models[:1], "in_use": results.in_use[:1], "robustness": ()}
    return results.model_copy(update=kept)


@pytest.fixture(scope="module")
def folder(results: ComparisonResults, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "new" / "report"
    assert write_report(results, folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects what the tests ask about, and fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"svg", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        """The words outside figures; narrow spaces are part of numbers, so only plain ones are folded."""
        return re.sub("[ \t\r\n\xa0]+", " ", " ".join(self.words))

    def find(self, name: str) -> list[str]:
        """All values of one attribute."""
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]

    def check_references(self) -> None:
        """Ids are unique, and every reference within the page finds one."""
        ids = self.find("id")
        assert len(ids) == len(set(ids))
        wanted = {word for value in self.find("aria-labelledby") for word in value.split()}
        wanted |= {value[1:] for value in self.find("href") if value.startswith("#")}
        assert wanted <= set(ids)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def list_estimates(results: ComparisonResults) -> Iterator[Estimate]:
    for row in (*results.models, *results.baselines):
        yield from row.evaluation.metrics.values()
    for point in results.robustness:
        yield from (point.accuracy, point.auroc)
    for part in results.subgroups:
        yield part.recall
        if part.slices > part.positives:
            yield part.specificity


def test_every_estimate_is_on_the_page(results: ComparisonResults, page: Page) -> None:
    for estimate in list_estimates(results):
        assert format_value(estimate.value) in page.text
        if estimate.low is not None:
            assert f"[{format_value(estimate.low)}, {format_value(estimate.high)}]" in page.text
        assert estimate.method in page.text


def test_every_other_number_is_on_the_page(results: ComparisonResults, page: Page) -> None:
    words = set(re.split(r"[ ,()]+", page.text))
    for model in results.models:
        counts = model.evaluation.confusion
        for number in (counts.tp, counts.fp, counts.fn, counts.tn, model.parameters, model.flops):
            assert format_count(number) in words
        for row in model.history:
            for loss in (row.train_loss, row.val_loss):
                assert format_value(loss, 4) in words
            for accuracy in (row.train_accuracy, row.val_accuracy):
                assert format_value(accuracy) in words
            for other in (row.seconds, row.slices_per_s):
                assert format_value(other, 1) in words
            assert f"{row.learning_rate:.2e}" in words
    for split in results.data.splits:
        for number in (split.fracture, split.normal, split.series, split.source_slices):
            assert number is not None
            assert format_count(number) in words
    for sample in results.samples:
        assert format_value(sample.prob) in words


def test_every_text_is_on_the_page(results: ComparisonResults, page: Page) -> None:
    run, data = results.run, results.data
    texts = [
        results.name,
        results.title,
        results.description,
        run.command,
        data.root,
        *data.notes,
        str(run.seed),
    ]
    texts += [note.text for note in results.notes] + [sample.slice_id for sample in results.samples]
    for mapping in (run.versions, run.machine, run.hashes):
        texts += [*mapping, *mapping.values()]
    texts += [*data.sizes, *data.modes, *run.experiment_toml.split("\n")]
    for model in results.models:
        texts += [model.name, model.backbone, model.head, model.weights, model.recipe, model.checkpoint_hash]
    texts += [baseline.description for baseline in results.baselines]
    texts += ["Research software. Not for clinical use.", "positive class is fracture", "95% interval"]
    texts += ["24 November 2026, 08:41 UTC", "2 h 3 min", "over 20 source slices (400 slices)"]
    for text in texts:
        assert " ".join(text.split()) in page.text.replace(" ;", ";")


def test_warnings_come_before_notes(page: Page) -> None:
    assert page.text.index("Early stopping watched val") < page.text.index("No patient ids")


def test_undefined_is_a_dash_with_a_footnote(page: Page) -> None:
    assert f"Precision (PPV) 7 1.000 [0.980, 1.000] {DASH} a" in page.text
    assert f"a {UNDEFINED}" in page.text


def test_wrong_slices_come_first(page: Page) -> None:
    shown = page.text[page.text.index("Slices, wrong ones first") :]
    assert shown.index("missed fracture") < shown.index("false alarm")
    assert "None of the slices shown was called wrongly." in shown
    second = shown[shown.index("ResNet50") :]
    assert second.index("false alarm") < second.index("fracture found")


def test_nothing_comes_from_outside(html: str, page: Page, folder: Path) -> None:
    for name in ("src", "href", "xlink:href", "data", "srcset", "action"):
        for value in page.find(name):
            inside = value.startswith(
                ("#", "data:image/png;base64,", "data:image/svg+xml;base64,")
            )  # too long for a file's name
            assert inside or (folder / value).is_file()  # written into the same folder
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "link" not in {tag for tag, _ in page.tags}


def test_ids_are_unique_and_references_answered(page: Page) -> None:
    page.check_references()


def test_page_is_accessible(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert all(attrs.get("scope") for tag, attrs in page.tags if tag == "th")
    for tag, attrs in page.tags:
        assert tag != "table" or attrs.get("aria-labelledby") or attrs.get("aria-label")


def test_figures_are_files_and_on_the_page(results: ComparisonResults, folder: Path, html: str) -> None:
    drawings = draw_all(results) | draw_in_use(results.in_use, list_entries(results))
    drawings |= draw_robustness(results.robustness, list_entries(results))
    files = {path.stem: path.read_text(encoding="utf-8") for path in (folder / "figures").glob("*.svg")}
    assert files == {name: drawing.svg + "\n" for name, drawing in drawings.items()}
    for name, drawing in drawings.items():
        on_a_page_of_its_own = name.startswith("robustness_auroc")
        assert (drawing.embed() in html) == (name != "robustness" and not on_a_page_of_its_own)


def test_results_come_back_the_same(results: ComparisonResults, folder: Path) -> None:
    assert read_results(folder / "results.json") == results
    assert read_results(folder) == results


def test_same_bytes_twice_and_nothing_else_left(
    results: ComparisonResults, folder: Path, tmp_path: Path
) -> None:
    write_report(results, tmp_path)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    for path in files:
        assert (tmp_path / path).read_bytes() == (folder / path).read_bytes()


def test_a_second_report_leaves_other_files(
    results: ComparisonResults, small: ComparisonResults, tmp_path: Path
) -> None:
    write_report(results.model_copy(update={"robustness": ()}), tmp_path)
    (tmp_path / "predictions.parquet").write_bytes(b"mine")
    (tmp_path / "figures" / "sheet.png").write_bytes(b"mine")
    write_report(small, tmp_path)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert "mobilenetv2-roc.svg" in names
    assert "resnet50-roc.svg" not in names
    assert "sheet.png" in names
    assert (tmp_path / "predictions.parquet").read_bytes() == b"mine"


def test_a_failed_write_leaves_nothing(
    small: ComparisonResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(target: Path, value: object) -> Path:
        raise OutputError("the disk is full; nothing was written", where=str(target), fix="free some space")

    monkeypatch.setattr(report, "write_json", fill_disk)
    target = tmp_path / "a" / "b"
    with pytest.raises(OutputError, match="the disk is full") as caught:
        write_report(small, target)
    assert caught.value.where == str(target)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_report(
    small: ComparisonResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(small, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(staging: Path, folder: Path, documents: Sequence[str]) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(report, "_publish", fail)
    with pytest.raises(OutputError, match="permission denied"):
        write_report(small.model_copy(update={"title": "Other"}), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_a_file_is_refused(small: ComparisonResults, tmp_path: Path) -> None:
    (tmp_path / "report").write_text("a file")
    with pytest.raises(OutputError) as caught:
        write_report(small, tmp_path / "report")
    assert caught.value.fix


def make_hostile(results: ComparisonResults) -> ComparisonResults:
    """Every free text replaced by one that would break out of HTML, XML, a template or mathtext."""
    evaluation = results.models[1].evaluation.model_copy(update={"model": EVIL})
    model = results.models[1].model_copy(
        update={"name": EVIL, "backbone": EVIL, "head": EVIL, "recipe": EVIL, "evaluation": evaluation}
    )
    return results.model_copy(
        update={
            "name": EVIL,
            "title": EVIL,
            "description": EVIL,
            "selection_split": EVIL,
            "reported_split": EVIL,
            "models": (model,),
            "in_use": (results.in_use[0].model_copy(update={"model": EVIL, "notes": (EVIL,)}),),
            "sizes": (results.sizes[0].model_copy(update={"model": EVIL, "unit": EVIL}),),
            "notes": (results.notes[0].model_copy(update={"text": EVIL}),),
            "samples": tuple(
                sample.model_copy(update={"model": EVIL, "slice_id": EVIL}) for sample in results.samples[:2]
            ),
            "robustness": tuple(
                point.model_copy(update={"model": EVIL, "corruption": EVIL})
                for point in results.robustness[:6]
            ),
            "data": results.data.model_copy(update={"root": EVIL, "notes": (EVIL,), "sizes": {EVIL: 1}}),
            "run": results.run.model_copy(
                update={"command": EVIL, "started": EVIL, "versions": {EVIL: EVIL}, "experiment_toml": EVIL}
            ),
        }
    )


def test_hostile_names_stay_text(results: ComparisonResults, tmp_path: Path) -> None:
    hostile = make_hostile(results)
    html = write_report(hostile, tmp_path).read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script" not in html
    assert "\x00" not in html
    assert html.count("{{ 7*7 }}") > 20
    assert EVIL.replace("\x00", "\ufffd") in unescape(html)
    assert read_results(tmp_path) == hostile


def test_a_comparison_of_nothing_is_a_page(results: ComparisonResults, tmp_path: Path) -> None:
    empty = {
        "models": (),
        "in_use": (),
        "sizes": (),
        "baselines": (),
        "robustness": (),
        "samples": (),
        "notes": (),
    }
    Page(write_report(results.model_copy(update=empty), tmp_path).read_text(encoding="utf-8"))


def test_units_that_differ_are_named_in_each_cell(small: ComparisonResults, tmp_path: Path) -> None:
    evaluation = small.baselines[0].evaluation.model_copy(update={"unit": "slice", "units": 400})
    baseline = small.baselines[0].model_copy(update={"evaluation": evaluation})
    page = Page(write_report(small.model_copy(update={"baselines": (baseline,)}), tmp_path).read_text())
    assert "20 (source slice)" in page.text
    assert "400 (slice)" in page.text


def test_other_methods_are_listed_with_their_metrics(small: ComparisonResults, tmp_path: Path) -> None:
    metrics = dict(small.models[0].evaluation.metrics)
    metrics["auroc"] = metrics["auroc"].model_copy(update={"method": "DeLong"})
    evaluation = small.models[0].evaluation.model_copy(update={"metrics": {**metrics, "own": metrics["f1"]}})
    models = (small.models[0].model_copy(update={"evaluation": evaluation}),)
    page = Page(write_report(small.model_copy(update={"models": models}), tmp_path).read_text())
    assert "DeLong 95% source slice 20 AUROC (MobileNetV2)" in page.text
    assert "Other own" in page.text
    assert "not computed" in page.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not the results of a comparison"),
        (b"[]", "not the results of a comparison"),
        (b'{"schema_version": 1}', "Field required"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_results(path)
    assert caught.value.where == str(path)
    assert caught.value.fix


def test_missing_results_and_another_schema_are_refused(results: ComparisonResults, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_results(tmp_path / "none.json")
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results.model_dump(mode="json") | {"schema_version": 99}))
    with pytest.raises(InputError, match="schema version 99"):
        read_results(path)


@pytest.mark.parametrize(
    ("seconds", "text"), [(6.74, "6.7 s"), (245, "4 min 5 s"), (7384.2, "2 h 3 min"), (59.97, "1 min 0 s")]
)
def test_format_duration(seconds: float, text: str) -> None:
    assert tables.format_duration(seconds) == text


FRAME = '<iframe src="PAGE" style="width:400px;height:3000px;border:0"></iframe>'
MEASURE = """<body style="margin:0" onload="document.title = 'w=' + Math.max(
...[...document.querySelectorAll('iframe')].map(one => one.contentDocument.documentElement.scrollWidth))">"""


@pytest.mark.parametrize("hostile", [False, True])
def test_no_sideways_scrolling_at_400_px(results: ComparisonResults, tmp_path: Path, hostile: bool) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium binary was found: the width of the page cannot be measured")
    shown = make_hostile(results) if hostile else results
    if hostile:
        long = "W" * 300
        model = shown.models[0].model_copy(update={"name": long, "recipe": long})
        shown = shown.model_copy(update={"models": (model,), "title": long, "description": long})
    html = write_report(shown, tmp_path).read_text(encoding="utf-8")
    (tmp_path / "open.html").write_text(html.replace("<details>", "<details open>"), encoding="utf-8")
    pages = ("open.html", "checklists.html", f"{list_card_folders(shown)[0]}/card.html")
    # A window cannot be as narrow as a telephone, a frame can; one file may look into another by a flag only.
    frames = "".join(FRAME.replace("PAGE", page) for page in pages)
    (tmp_path / "frame.html").write_text(MEASURE + frames, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, (tmp_path / "frame.html").as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    found = re.search(r"w=(\d+)", done.stdout)
    assert found
    assert int(found.group(1)) <= 400


def test_the_page_opens_with_the_verdict(html: str) -> None:
    text = " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())
    assert (
        "Verdict: not evidence. A comparison on this split is no evidence that a model finds fractures."
        in text
    )
    assert text.index("Verdict:") < text.index("Performance on val")


def test_the_verdict_has_its_reasons_and_remedies_once(results: ComparisonResults, page: Page) -> None:
    opening = page.text[
        page.text.index("Verdict: not evidence.") : page.text.index("Warning Early stopping watched")
    ]
    assert results.findings is not None
    places = [opening.index(finding.text) for finding in results.findings]
    assert places == sorted(places)
    assert opening.count("What to do") == 4
    for finding in results.findings:
        assert opening.count(finding.remedy.replace("`", "")) <= 1
    assert opening.count("Invalidates ") == 3
    assert "Remarks, which change nothing in the verdict: 1 Remark 4,200 files" in opening


def test_results_without_findings_are_shown_with_their_notes(
    small: ComparisonResults, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    old = small.model_dump(mode="json")
    del old["findings"]
    path.write_text(json.dumps(old))
    read = read_results(path)
    assert read.findings is None
    text = Page(write_report(read, tmp_path).read_text(encoding="utf-8")).text
    assert "Verdict: not evidence." in text
    assert "What to do" not in text
    assert "No finding speaks against it." not in text
    assert all(note.text in text for note in small.notes)


def test_a_report_without_an_audit_has_no_verdict(small: ComparisonResults, tmp_path: Path) -> None:
    write_report(small.model_copy(update={"verdict": None}), tmp_path)
    assert "Verdict" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_every_pair_is_shown_in_the_words_of_its_test(results: ComparisonResults, html: str) -> None:
    assert results.pairs is not None
    text = " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())
    for pair in results.pairs.pairs:
        for found in pair.metrics:
            row = text.index(f"{pair.first} and {pair.second}")
            assert found.words in text[row:]
    words = {found.words for pair in results.pairs.pairs for found in pair.metrics}
    assert "no difference shown" in words
    assert "MobileNetV2 is better" in words
