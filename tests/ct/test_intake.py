"""Every reason of intake: planted in a drawn neck, found, and met as the policy says."""

from __future__ import annotations

import functools
import itertools
import os
import random
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cspine.phantom.patient import PhantomPatient
from cspine.phantom.scanner import PhantomVolume, render_volume

pydicom = pytest.importorskip("pydicom")

from scipy.ndimage import map_coordinates  # noqa: E402

from cspine.core.answers import Action, Reason  # noqa: E402
from cspine.ct.annotations import CtSeries  # noqa: E402
from cspine.ct.dicom import PixelReader, UndecodableError, scan_dicom  # noqa: E402
from cspine.ct.intake import RULES, IntakePolicy  # noqa: E402
from cspine.ct.volume import Volume  # noqa: E402
from cspine.phantom.dicom import PLAIN, TRANSFER_SYNTAXES, Encoding  # noqa: E402
from tests.ct.reading import read_dicom  # noqa: E402
from tests.phantom.faults import (  # noqa: E402
    FAULTS,
    SHIFT_MM,
    TILT_DEG,
    scan_with_faults,
    write_disc,
    write_with_faults,
)

SPACING_MM = (2.5, 2.75, 2.75)
# What a fault brings with it by its nature.
ALSO = {
    Reason.TOO_FEW_SLICES: {Reason.NO_CERVICAL_EXTENT},
    Reason.NOT_AXIAL: set(),
}


@functools.cache
def render(neck: PhantomPatient) -> PhantomVolume:
    return render_volume(neck, SPACING_MM)


def write(neck: PhantomPatient, folder: Path, *faults: Reason) -> Volume:
    """Write a series with faults; returns the volume that was scanned."""
    parts = scan_with_faults(neck, render(neck), PLAIN, faults)
    write_with_faults(folder, parts, PLAIN, faults)
    return parts[0]


def read(folder: Path, policy: IntakePolicy | None = None) -> list[CtSeries]:
    return list(read_dicom(find_source(folder), policy))


def find_source(folder: Path) -> Path:
    """A disc by its DICOMDIR; a file that is no DICOM by its name; else the folder."""
    if (folder / "disc").is_dir():
        return folder / "disc" / "DICOMDIR"
    first = next(path for path in sorted(folder.rglob("*")) if path.is_file())
    return first if first.read_bytes().startswith(b"This is no picture") else folder


def list_reasons(results: list[CtSeries]) -> set[Reason]:
    return {finding.reason for result in results for finding in result.intake.findings}


@pytest.fixture(scope="module")
def planted(
    broken_neck: PhantomPatient, tmp_path_factory: pytest.TempPathFactory
) -> dict[Reason, tuple[Path, Volume]]:
    made: dict[Reason, tuple[Path, Volume]] = {}
    for reason in FAULTS:
        folder = tmp_path_factory.mktemp(reason.value)
        made[reason] = folder, write(broken_neck, folder, reason)
    return made


@pytest.fixture(scope="module")
def clean(broken_neck: PhantomPatient, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Volume]:
    folder = tmp_path_factory.mktemp("clean")
    return folder, write(broken_neck, folder)


def test_a_clean_series_raises_no_reason(clean: tuple[Path, Volume]) -> None:
    folder, truth = clean
    [result] = read(folder)
    assert result.intake.findings == ()
    assert result.intake.decision == "taken"
    assert result.intake.slices == result.intake.slices_found == result.intake.files == len(truth)
    np.testing.assert_array_equal(result.volume.hu, truth.hu)
    assert result.volume.patient_id == truth.patient_id
    assert result.volume.series_uid == truth.series_uid


@pytest.mark.parametrize("reason", FAULTS)
def test_a_planted_fault_is_found_and_met_as_documented(
    reason: Reason, planted: dict[Reason, tuple[Path, Volume]]
) -> None:
    results = read(planted[reason][0])
    assert list_reasons(results) == {reason} | ALSO.get(reason, set())
    [finding] = [f for result in results for f in result.intake.findings if f.reason is reason]
    # Stored values that were no HU, as the phantom's with its offset, cannot be taken as HU.
    assert finding.action is RULES[reason].actions[0]
    assert finding.detail
    for result in results:
        if result.intake.decision == "refused":
            assert result.volume is None
            assert result.intake.slices == 0


@pytest.mark.parametrize(
    ("reason", "action"),
    [(reason, action) for reason in FAULTS for action in RULES[reason].actions],
    ids=lambda value: str(value),
)
def test_a_policy_decides_what_is_done(
    reason: Reason, action: Action, planted: dict[Reason, tuple[Path, Volume]]
) -> None:
    others = {other: Action.WARN for other in ALSO.get(reason, ())}
    policy = IntakePolicy(actions={reason: action, **others})
    results = read(planted[reason][0], policy)
    actions = {
        finding.action for result in results for finding in result.intake.findings if finding.reason is reason
    }
    if reason is Reason.MISSING_RESCALE and action is Action.CORRECT:
        # The stored values of this series are no HU: taking them as such is refused after a look at them.
        assert actions == {Action.CORRECT, Action.REFUSE}
        return
    if reason is Reason.MISSING_SLICES and action is Action.WARN:
        assert actions == {Action.WARN}
        assert len(results[0].volume) == len(planted[reason][1]) - 2
        return
    assert actions == {action}
    expected = {Action.REFUSE: "refused", Action.CORRECT: "corrected", Action.WARN: "taken"}[action]
    assert expected in {result.intake.decision for result in results}


def test_a_policy_cannot_ask_for_what_is_impossible() -> None:
    with pytest.raises(ValueError, match="not-ct cannot be met with 'warn'"):
        IntakePolicy(actions={Reason.NOT_CT: Action.WARN})


# What correcting leaves must be what was scanned.


def read_one(planted: dict[Reason, tuple[Path, Volume]], reason: Reason) -> tuple[Volume, Volume]:
    folder, scanned = planted[reason]
    policy = IntakePolicy(actions={reason: Action.CORRECT})
    [result] = read(folder, policy)
    return result.volume, scanned


@pytest.mark.parametrize(
    "reason",
    [
        Reason.LOCALIZER,
        Reason.TURNED,
        Reason.SEVERAL_ACQUISITIONS,
        Reason.DUPLICATE_POSITIONS,
        Reason.MIXED_ORIENTATION,
    ],
)
def test_what_is_left_out_or_turned_leaves_the_rest_bit_by_bit(
    reason: Reason, planted: dict[Reason, tuple[Path, Volume]]
) -> None:
    volume, scanned = read_one(planted, reason)
    np.testing.assert_array_equal(volume.hu, scanned.hu)
    np.testing.assert_allclose(volume.origins_mm, scanned.origins_mm, atol=1e-5)


def look_up(volume: Volume, points_mm: np.ndarray) -> np.ndarray:
    """HU at places in the patient, linear between voxels."""
    index = (points_mm - volume.affine[:3, 3]) @ np.linalg.inv(volume.affine[:3, :3]).T
    return map_coordinates(volume.hu.astype(float), index.T, order=1, mode="constant", cval=-1024)


@pytest.mark.parametrize("reason", [Reason.GANTRY_TILT, Reason.SHIFTED_SLICES, Reason.UNEVEN_SPACING])
def test_a_corrected_volume_moves_nothing_in_the_patient(
    reason: Reason, planted: dict[Reason, tuple[Path, Volume]], clean: tuple[Path, Volume]
) -> None:
    volume, _ = read_one(planted, reason)
    straight = clean[1]
    assert volume.is_even
    middle = (
        straight.origins_mm.mean(axis=0) + np.array([1.0, 1.0, 0.0]) * 2.75 * (straight.hu.shape[1] - 1) / 2
    )
    offsets = np.array(list(itertools.product((-20, -7, 3, 12, 19), (-20, -9, 2, 11, 20), (-20, -5, 4, 21))))
    points = middle + offsets
    found, wanted = look_up(volume, points), look_up(straight, points)
    # Interpolated twice or three times on coarse voxels, so edges of bone soften; a wrong shift would leave nothing
    # alike. As a control, the same places 8 mm off.
    off = look_up(straight, points + np.array([0.0, 8.0, 0.0]))
    assert np.corrcoef(found, wanted)[0, 1] > 0.9
    assert np.abs(found - wanted).mean() < 0.35 * np.abs(off - wanted).mean()


def test_figures_of_tilt_and_shift_are_those_planted(
    planted: dict[Reason, tuple[Path, Volume]],
) -> None:
    [tilt] = read(planted[Reason.GANTRY_TILT][0])[0].intake.findings
    assert tilt.detail == f"{TILT_DEG:.1f} degrees"
    [shift] = read(planted[Reason.SHIFTED_SLICES][0])[0].intake.findings
    assert shift.detail == f"by up to {SHIFT_MM:.1f} mm"


def test_filled_gaps_lie_between_their_neighbours(planted: dict[Reason, tuple[Path, Volume]]) -> None:
    volume, scanned = read_one(planted, Reason.MISSING_SLICES)
    assert len(volume) == len(scanned)
    middle = len(scanned) // 2
    kept = np.ones(len(scanned), bool)
    kept[middle : middle + 2] = False
    np.testing.assert_array_equal(volume.hu[kept], scanned.hu[kept])
    before, after = (scanned.hu[index].astype(float) for index in (middle - 1, middle + 2))
    np.testing.assert_allclose(volume.hu[middle], before * 2 / 3 + after / 3, atol=0.51)
    # No instance of the source shows these slices.
    assert volume.sop_instance_uids == ()


def test_a_gap_too_wide_to_fill_is_refused(
    planted: dict[Reason, tuple[Path, Volume]],
) -> None:
    policy = IntakePolicy(actions={Reason.MISSING_SLICES: Action.CORRECT}, max_gap_mm=7.0)
    [result] = read(planted[Reason.MISSING_SLICES][0], policy)
    assert result.intake.decision == "refused"


def test_different_pictures_at_one_position_are_refused(broken_neck: PhantomPatient, tmp_path: Path) -> None:
    write(broken_neck, tmp_path, Reason.DUPLICATE_POSITIONS)
    last = max(path for path in tmp_path.iterdir())
    dataset = pydicom.dcmread(last)
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(last)
    [result] = read(tmp_path)
    [finding] = result.intake.findings
    assert finding.reason is Reason.DUPLICATE_POSITIONS
    assert finding.action is Action.REFUSE
    assert "different pictures" in finding.detail


def test_missing_rescale_is_corrected_if_stored_values_are_hu(
    broken_neck: PhantomPatient, tmp_path: Path
) -> None:
    habit = replace(PLAIN, signed=True, bits_stored=16, intercept=0.0)
    parts = scan_with_faults(broken_neck, render(broken_neck), habit)
    write_with_faults(tmp_path, parts, habit, [Reason.MISSING_RESCALE])
    [result] = read(tmp_path, IntakePolicy(actions={Reason.MISSING_RESCALE: Action.CORRECT}))
    assert result.intake.decision == "corrected"
    np.testing.assert_array_equal(result.volume.hu, parts[0].hu)


def test_undecodable_slices_ordered_by_location_are_left_out(
    broken_neck: PhantomPatient, tmp_path: Path
) -> None:
    scanned = write(broken_neck, tmp_path, Reason.MISSING_POSITION, Reason.UNDECODABLE)
    both = IntakePolicy(actions={Reason.MISSING_POSITION: Action.CORRECT, Reason.UNDECODABLE: Action.CORRECT})
    [result] = read(tmp_path, both)
    np.testing.assert_array_equal(result.volume.hu, scanned.hu[1:])


def test_slices_without_position_are_ordered_by_location(
    planted: dict[Reason, tuple[Path, Volume]],
) -> None:
    volume, scanned = read_one(planted, Reason.MISSING_POSITION)
    np.testing.assert_array_equal(volume.hu, scanned.hu)


def test_a_damaged_rle_frame_ends_no_program(broken_neck: PhantomPatient, tmp_path: Path) -> None:
    habit = replace(PLAIN, encoding="rle")
    write_with_faults(tmp_path, scan_with_faults(broken_neck, render(broken_neck), habit), habit)
    path = min(tmp_path.iterdir())
    dataset = pydicom.dcmread(path)
    [frame] = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
    rng, outcomes = random.Random(0), set()
    for _ in range(60):
        damaged = bytearray(frame)
        damaged[rng.randrange(64, len(frame))] = rng.randrange(256)
        dataset.PixelData = pydicom.encaps.encapsulate([bytes(damaged)])
        dataset.save_as(path)
        try:
            PixelReader().read_hu(scan_dicom(path).series[0].frames[0])
            outcomes.add("read")
        except UndecodableError:
            outcomes.add("undecodable")
    assert outcomes == {"read", "undecodable"}


# However the files lie and are encoded, the volume is the same.


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("encoding", TRANSFER_SYNTAXES)
@pytest.mark.parametrize("multi_frame", [False, True], ids=["classic", "multi-frame"])
def test_every_transfer_syntax_gives_the_same_hounsfield_units(
    encoding: Encoding, signed: bool, multi_frame: bool, clean: tuple[Path, Volume], tmp_path: Path
) -> None:
    from cspine.phantom.dicom import make_objects, write_objects

    _, truth = clean
    truth = replace(truth, hu=truth.hu[::4], origins_mm=truth.origins_mm[::4])
    habit = replace(
        PLAIN, encoding=encoding, signed=signed, multi_frame=multi_frame, bits_stored=16 if signed else 12
    )
    write_objects(tmp_path, make_objects(truth, habit), habit)
    [result] = read(tmp_path, IntakePolicy(min_slices=5))
    assert result.intake.findings == ()
    np.testing.assert_array_equal(result.volume.hu, truth.hu)
    np.testing.assert_allclose(result.volume.origins_mm, truth.origins_mm, atol=1e-5)
    assert bool(result.volume.frame_numbers) == multi_frame


def test_names_and_depth_of_the_files_change_nothing(clean: tuple[Path, Volume], tmp_path: Path) -> None:
    folder, truth = clean
    paths = sorted(folder.iterdir())
    names = [f"{'abc'[number % 3]}/{number}" for number in range(len(paths))]
    random.Random(3).shuffle(names)
    for path, name in zip(paths, names, strict=True):
        target = tmp_path / "deep" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "deep" / "notes.txt").write_text("not a picture")
    [result] = read(tmp_path)
    np.testing.assert_array_equal(result.volume.hu, truth.hu)
    assert scan_dicom(tmp_path).ignored == 1


def test_a_zip_reads_as_the_folder_that_it_holds(clean: tuple[Path, Volume], tmp_path: Path) -> None:
    folder, truth = clean
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, path in enumerate(sorted(folder.iterdir(), reverse=True)):
            archive.write(path, f"study/{number}")
        archive.writestr("readme.txt", "not a picture")
    for source in (tmp_path / "study.zip", tmp_path):
        [result] = list(read_dicom(source))
        assert result.intake.findings == ()
        np.testing.assert_array_equal(result.volume.hu, truth.hu)


def test_a_damaged_zip_is_a_row_and_not_a_crash(clean: tuple[Path, Volume], tmp_path: Path) -> None:
    (tmp_path / "study.zip").write_bytes(b"PK\x03\x04" + bytes(200))
    [result] = list(read_dicom(tmp_path))
    assert list_reasons([result]) == {Reason.DAMAGED_FILE}


def test_what_may_not_be_read_is_a_row_and_not_the_end(
    clean: tuple[Path, Volume], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(clean[0], tmp_path / "in/whole")
    (tmp_path / "in/shut").mkdir()
    (tmp_path / "in/whole/hidden").write_text("")
    # Whoever runs the tests as root may read everything.
    listed, is_file = os.scandir, Path.is_file

    def refuse_to_list(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    def refuse_to_look(path: Path) -> bool:
        if path.name == "hidden":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(os, "scandir", refuse_to_list)
    monkeypatch.setattr(Path, "is_file", refuse_to_look)
    found = scan_dicom(tmp_path / "in")
    assert len(found.series) == 1
    assert {(Path(row.source).name, row.findings[0].reason) for row in found.rows} == {
        ("shut", Reason.DAMAGED_FILE),
        ("hidden", Reason.DAMAGED_FILE),
    }
    assert all(row.findings[0].detail == "permission denied" for row in found.rows)


def test_empty_pixel_data_is_told_in_words(clean: tuple[Path, Volume], tmp_path: Path) -> None:
    path = next(path for path in sorted(clean[0].rglob("*")) if path.is_file())
    dataset = pydicom.dcmread(path)
    dataset.PixelData = None
    dataset.save_as(tmp_path / "empty.dcm")
    (series,) = scan_dicom(tmp_path).series
    with pytest.raises(UndecodableError, match=r"^Pixel Data is empty$"):
        PixelReader().read_hu(series.frames[0])


def test_a_dicomdir_reads_as_the_files_that_it_names(clean: tuple[Path, Volume], tmp_path: Path) -> None:
    folder, truth = clean
    directory = write_disc(tmp_path / "disc", sorted(folder.iterdir()))
    for source in (directory, tmp_path):
        [result] = list(read_dicom(source))
        assert result.intake.findings == ()
        np.testing.assert_array_equal(result.volume.hu, truth.hu)


def test_two_series_in_one_folder_are_two_volumes(clean: tuple[Path, Volume], tmp_path: Path) -> None:
    _, truth = clean
    from cspine.phantom.dicom import make_objects, write_objects

    other = replace(truth, series_uid="2.25.77", hu=truth.hu[::-1].copy())
    for number, volume in enumerate((truth, other)):
        write_objects(tmp_path, make_objects(volume, PLAIN), replace(PLAIN, file_name=f"{number}-{{number}}"))
    read_back = {result.volume.series_uid: result.volume.hu for result in read(tmp_path)}
    np.testing.assert_array_equal(read_back[truth.series_uid], truth.hu)
    np.testing.assert_array_equal(read_back["2.25.77"], other.hu)


def test_no_row_says_who_the_patient_is_in_its_findings(
    planted: dict[Reason, tuple[Path, Volume]], clean: tuple[Path, Volume]
) -> None:
    patient_id = clean[1].patient_id
    assert patient_id
    for folder, _ in planted.values():
        for result in read(folder):
            for finding in result.intake.findings:
                assert patient_id not in finding.detail
                assert "Phantom^" not in finding.detail


def test_missing_files_of_a_disc_are_noted_and_not_taken(
    planted: dict[Reason, tuple[Path, Volume]],
) -> None:
    results = read(planted[Reason.MISSING_FILE][0])
    assert sorted((result.intake.decision, result.intake.slices > 0) for result in results) == [
        ("noted", False),
        ("taken", True),
    ]


PAGE = (Path(__file__).parents[2] / "docs" / "intake.md").read_text(encoding="utf-8")


def test_the_page_has_every_reason_its_choices_and_meaning() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    assert [name for name, *_ in rows] == [str(reason) for reason in Reason]
    for name, choices, meaning, correction in rows:
        rule = RULES[Reason(name)]
        assert choices == ", ".join(rule.actions)
        assert meaning == rule.means
        assert correction == rule.correction


def test_the_limits_on_the_page_are_the_defaults() -> None:
    policy = IntakePolicy()
    for name in set(IntakePolicy.model_fields) - {"actions"}:
        [value] = re.findall(rf"^    {name} = ([\d.]+)", PAGE, re.MULTILINE)
        assert float(value) == getattr(policy, name), name
