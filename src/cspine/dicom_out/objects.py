"""The standard objects of one answer: a report (TID 1500), a heat map (PS3.3 A.75), overlays (PS3.3 A.8.1).

Heat is a Parametric Map and not a segmentation: it says what a network looked at, which is no outline of a fracture and
no probability of one in a voxel. Overlays are what every viewer shows, one RGB image for each slice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from highdicom import (
    PixelMeasuresSequence,
    PlaneOrientationSequence,
    PlanePositionSequence,
    VOILUTTransformation,
)
from highdicom.pm import ParametricMap, RealWorldValueMapping
from highdicom.sc import SCImage
from highdicom.sr import (
    AlgorithmIdentification,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

import cspine
from cspine.core.answers import Abstention, StudyAnswer
from cspine.core.errors import InputError
from cspine.core.files import atomic_folder
from cspine.ct.dicom_files import Frame, hush_pydicom
from cspine.dicom_out.source import (
    CHARACTER_SET,
    MANUFACTURER,
    NOTICE,
    Deidentify,
    HeatMaps,
    Identity,
    SourceSeries,
    format_numbers,
    make_code,
    make_identity,
    make_item,
    make_source_item,
)

Picture = npt.NDArray[np.uint8]

FRACTURE = Code("125605004", "SCT", "Fracture of bone")
CALLS = {
    "fracture": codes.SCT.Present,
    "no fracture": codes.SCT.Absent,
    "abstained": codes.SCT.Indeterminate,
}
LEVELS = {f"C{number}": getattr(codes.SCT, f"C{number}Vertebra") for number in range(1, 8)}
_DECIMALS = 6
# The details of intake quote names of files and values of headers; these sentences do not.
_WITHOUT_DETAIL = {
    Abstention.INTAKE_REFUSED: "intake refused the series",
    Abstention.UNFIT_RECIPE: "the model's recipe does not fit the series",
    Abstention.OUT_OF_DISTRIBUTION: "the study lies too far from what the model was trained on",
}
# Who observed: one UID for each version, the same for ever (PS3.5 B.2; no machine or person is named).
_DEVICE_ROOT = Deidentify("cspine device observer")
_REPORT, _OVERLAYS, _HEAT = 1, 2, 3
_MIN_COLUMNS_PX = 480
_STRIP_FRACTION = 0.06
# Heat is stored as 16 bits, which every viewer can show, with the mapping back to 0..1.
_FULL = 65535
_CENTER, _WIDTH = 32768, 65536


def write_dicom_outputs(
    folder: Path,
    source: SourceSeries,
    answer: StudyAnswer,
    heat: HeatMaps | None = None,
    overlays: Mapping[int, Picture] | None = None,
    *,
    deidentify: Deidentify | None = None,
) -> list[Path]:
    """Write an answer as standard objects: `report.dcm`, `heat.dcm`, `overlay-001.dcm` and on.

    Args:
        folder: A new or empty one; it appears whole, or not at all.
        source: The series that the answer is about (`find_source`).
        answer: Of that series.
        heat: Where the model looked; None writes no map.
        overlays: Slice of the volume to (rows, columns, 3) RGB, the whole slice at any size; nothing of it may
            identify the patient. None writes none.
        deidentify: Replace the identity of the source in all objects.

    Returns:
        The files: the report, then the map, then the overlays from feet to head.

    Raises:
        InputError: heat of a series that does not say where its slices lie.
        OutputError: the folder is not empty or cannot be written.
        ValueError: heat or overlays are not of the volume's slices.
    """
    # Names and values that pydicom and highdicom warn of are the source's.
    with hush_pydicom(), atomic_folder(folder) as temporary:
        identity = make_identity(source.header, deidentify, _digest(answer, heat, overlays))
        made = {"report.dcm": make_report(identity, source, answer)}
        if heat is not None:
            made["heat.dcm"] = make_heat_map(identity, source, heat)
        pictures = make_overlays(identity, source, overlays or {})
        made |= {f"overlay-{place:03d}.dcm": picture for place, picture in enumerate(pictures, start=1)}
        for name, dataset in made.items():
            dataset.save_as(temporary / name, enforce_file_format=True)
    return [Path(folder) / name for name in made]


def _digest(answer: StudyAnswer, heat: HeatMaps | None, overlays: Mapping[int, Picture] | None) -> str:
    """Return what UIDs of a de-identified run follow from: all that is written, but not where the source lay."""
    said = answer.as_dict()
    del said["source"], said["intake"]
    digest = hashlib.sha256(json.dumps([said, cspine.__version__], sort_keys=True).encode())
    if heat is not None:
        digest.update(json.dumps([heat.slices, heat.method]).encode())
        digest.update(np.ascontiguousarray(heat.maps, np.float32).data)
    for index, picture in sorted((overlays or {}).items()):
        digest.update(str((index, picture.shape)).encode())
        digest.update(np.ascontiguousarray(picture).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class _MapFrame:
    """One frame as it is written: values, the place of its first pixel, and what it was derived from."""

    values: npt.NDArray[np.float32]
    origin_mm: Sequence[float]
    frames: tuple[Frame, ...]


def make_heat_map(identity: Identity, source: SourceSeries, heat: HeatMaps) -> Dataset:
    """Make a map on the grid of the source's slices, or of the volume if its slices are interpolated.

    Raises:
        InputError: the series names no frame of reference, or no positions.
        ValueError: the maps are not of the volume's grid.
    """
    stack = source.stack
    if (
        stack is None
        or heat.maps.shape[1:] != stack.size_px
        or not set(heat.slices) <= set(range(len(stack)))
    ):
        raise ValueError(f"heat maps must be of the volume's slices, not {heat.maps.shape}")
    if not source.has_place:
        raise InputError(
            "a heat map needs the place of each slice in the patient, which the series does not say",
            where=source.frames[0].file.name,
            fix="write the report and the overlays without it",
        )
    planes = _list_planes(source, heat)
    planes.sort(key=lambda plane: float(np.dot(plane.origin_mm, stack.direction[0])))
    sources = _describe_sources(identity, source, planes)
    orientation, spacing_mm = _describe_grid(source)
    result = ParametricMap(
        source_images=sources[:1] if "NumberOfFrames" in sources[0] else sources,
        further_source_images=sources[1:] if "NumberOfFrames" in sources[0] else None,
        pixel_array=np.stack([np.rint(plane.values * _FULL).astype(np.uint16) for plane in planes]),
        device_serial_number=cspine.__version__,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[
            RealWorldValueMapping(
                lut_label="HEAT",
                lut_explanation=f"{heat.method}, 0 to 1"[:64],
                unit=codes.UCUM.NoUnits,
                value_range=(0, _FULL),
                slope=1 / _FULL,
                intercept=0.0,
                quantity_definition=codes.DCM.ClassActivation,
            )
        ],
        voi_lut_transformations=[VOILUTTransformation(window_center=_CENTER, window_width=_WIDTH)],
        pixel_measures=PixelMeasuresSequence(
            pixel_spacing=spacing_mm,
            slice_thickness=source.frames[0].slice_thickness_mm or stack.spacing_mm[0],
        ),
        plane_orientation=PlaneOrientationSequence("PATIENT", orientation),
        plane_positions=[PlanePositionSequence("PATIENT", plane.origin_mm) for plane in planes],
        content_label="HEAT",
        content_description=f"Where the model looked. {NOTICE}"[:64],
        content_qualification="RESEARCH",
        specific_character_set=CHARACTER_SET,
        **identity.describe_object("heat", _HEAT),
    )
    _complete_frames(result, identity, source, planes)
    identity.finish(result)
    return result


def _list_planes(source: SourceSeries, heat: HeatMaps) -> list[_MapFrame]:
    assert source.stack is not None
    planes = []
    for index, values in zip(heat.slices, heat.maps, strict=True):
        frames = source.find_frames(index)
        if source.is_interpolated:
            planes.append(_MapFrame(values, tuple(map(float, source.stack.origins_mm[index])), frames))
        else:
            assert frames[0].image_position_mm is not None
            planes.append(_MapFrame(source.stack.restore(index, values), frames[0].image_position_mm, frames))
    return planes


def _describe_grid(source: SourceSeries) -> tuple[list[float], tuple[float, float]]:
    """Return Image Orientation and Pixel Spacing of what is written."""
    stack = source.stack
    assert stack is not None
    if source.is_interpolated:
        return [*stack.direction[2], *stack.direction[1]], stack.spacing_mm[1:]
    first = stack.frames[0]
    assert first.image_orientation is not None
    assert first.pixel_spacing_mm is not None
    return [*first.image_orientation[0], *first.image_orientation[1]], first.pixel_spacing_mm


def _describe_sources(identity: Identity, source: SourceSeries, planes: Sequence[_MapFrame]) -> list[Dataset]:
    """Return headers of the files that the planes were derived from, as far as a map needs them."""
    used = [frame for plane in planes for frame in plane.frames]
    described = []
    for uid in dict.fromkeys(frame.sop_instance_uid for frame in used):
        own = [frame for frame in source.frames if frame.sop_instance_uid == uid]
        dataset = Dataset()
        dataset.update(identity.header)
        dataset.update(identity.make_references(own)[0])
        dataset.Rows, dataset.Columns = own[0].rows, own[0].columns
        # One orientation for all: intake takes slices for parallel that differ in the last digits.
        measures, orientation = _describe_plane(used[0])
        if own[0].index is None:
            for part in (_describe_position(own[0]), measures, orientation):
                dataset.update(part)
        else:
            dataset.NumberOfFrames = len(own)
            dataset.SharedFunctionalGroupsSequence = [
                make_item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[orientation])
            ]
            dataset.PerFrameFunctionalGroupsSequence = [
                make_item(PlanePositionSequence=[_describe_position(frame)]) for frame in own
            ]
        described.append(dataset)
    return described


def _describe_position(frame: Frame) -> Dataset:
    # A frame of the same file that is none of the volume's slices may have none.
    return make_item(ImagePositionPatient=format_numbers(frame.image_position_mm or (0.0, 0.0, 0.0)))


def _describe_plane(frame: Frame) -> tuple[Dataset, Dataset]:
    """Return Pixel Measures and Plane Orientation."""
    assert frame.image_orientation is not None
    assert frame.pixel_spacing_mm is not None
    measures = make_item(PixelSpacing=format_numbers(frame.pixel_spacing_mm))
    if frame.slice_thickness_mm is not None:
        measures.SliceThickness = format_numbers([frame.slice_thickness_mm])[0]
    return measures, make_item(
        ImageOrientationPatient=format_numbers([*frame.image_orientation[0], *frame.image_orientation[1]])
    )


def _complete_frames(
    result: ParametricMap, identity: Identity, source: SourceSeries, planes: Sequence[_MapFrame]
) -> None:
    """Say of each frame what it was derived from, whatever the positions look like; and keep UIDs reproducible."""
    uid = identity.make_uid("heat dimensions")
    for item in (*result.DimensionOrganizationSequence, *result.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
    preserved = "NO" if source.is_interpolated else "YES"
    origins_mm = np.array([plane.origin_mm for plane in planes])
    for group in result.PerFrameFunctionalGroupsSequence:
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, np.float64)
        plane = planes[int(np.abs(origins_mm - place).sum(axis=1).argmin())]
        group.DerivationImageSequence = [
            make_item(
                DerivationCodeSequence=[make_code(codes.DCM.VisualExplanation)],
                SourceImageSequence=[
                    make_source_item(identity, frame, SpatialLocationsPreserved=preserved)
                    for frame in plane.frames
                ],
            )
        ]


def make_overlays(identity: Identity, source: SourceSeries, overlays: Mapping[int, Picture]) -> list[Dataset]:
    """Make one Secondary Capture image for each picture, from feet to head.

    Each lies in the source's frame of reference (PS3.3 A.8.1.3 allows the Image Plane module), so that a viewer scrolls
    them along with the series.

    Args:
        identity: Whose.
        source: The series that the pictures are of.
        overlays: Slice of the volume to (rows, columns, 3) RGB, the whole slice at any size.

    Raises:
        ValueError: a picture is not of a whole slice of the volume.
    """
    described = identity.describe_object("overlay", _OVERLAYS)
    made: list[Dataset] = []
    for number, index in enumerate(sorted(overlays), start=1):
        described |= {"sop_instance_uid": identity.make_uid("overlay", number), "instance_number": number}
        shown = _enlarge(overlays[index], source, index)
        image = SCImage(
            pixel_array=_burn_notice(shown),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "P"),  # the volume's own: columns to the left, rows to the back
            study_instance_uid=identity.header.StudyInstanceUID,
            **described,
        )
        image.copy_patient_and_study_information(identity.header)
        # The notice identifies nobody, and no other text is drawn (PS3.3 C.7.6.1).
        image.BurnedInAnnotation = "NO"
        image.ImageComments = NOTICE
        image.DateOfSecondaryCapture = image.ContentDate
        image.TimeOfSecondaryCapture = image.ContentTime
        _refer(image, identity, source, index)
        if source.has_place:
            _locate(image, identity, source, index, shown.shape[:2])
        identity.finish(image)
        made.append(image)
    return made


def _enlarge(picture: Picture, source: SourceSeries, index: int) -> Picture:
    """Return the picture, enlarged by a whole factor if it is too small to be read."""
    stack = source.stack
    if stack is None or not 0 <= index < len(stack):
        raise ValueError(f"overlay {index} is of no slice of the volume")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"overlay {index} is no (rows, columns, 3) picture in 8 bits: {picture.shape}")
    zoom_y, zoom_x = picture.shape[0] / stack.size_px[0], picture.shape[1] / stack.size_px[1]
    if (
        abs(zoom_y * stack.size_px[1] - picture.shape[1]) > 1
        and abs(zoom_x * stack.size_px[0] - picture.shape[0]) > 1
    ):
        raise ValueError(f"overlay {index} has another shape than the slice {stack.size_px}: {picture.shape}")
    more = -(-_MIN_COLUMNS_PX // picture.shape[1])
    return picture.repeat(more, axis=0).repeat(more, axis=1) if more > 1 else picture


def _burn_notice(picture: Picture) -> Picture:
    """Return the picture with the notice on a strip below it, where it hides nothing of the patient."""
    columns = picture.shape[1]
    height = max(24, round(_STRIP_FRACTION * columns))
    strip = np.zeros((height, columns, 3), np.uint8)
    text, font = NOTICE.upper(), cv2.FONT_HERSHEY_SIMPLEX
    (width, tall), _ = cv2.getTextSize(text, font, 1.0, 1)
    scale = min(0.92 * columns / width, 0.6 * height / tall)
    place = (round((columns - scale * width) / 2), round((height + scale * tall) / 2))
    cv2.putText(strip, text, place, font, scale, (255, 255, 0), max(1, round(1.5 * scale)), cv2.LINE_AA)
    return np.ascontiguousarray(np.concatenate([picture, strip]))


def _refer(image: Dataset, identity: Identity, source: SourceSeries, index: int) -> None:
    frames = source.find_frames(index)
    image.SourceImageSequence = [make_source_item(identity, frame) for frame in frames]
    references = identity.make_references(frames)
    instances = [
        make_item(ReferencedSOPClassUID=one.SOPClassUID, ReferencedSOPInstanceUID=one.SOPInstanceUID)
        for one in references
    ]
    series_uid = references[0].SeriesInstanceUID
    image.ReferencedSeriesSequence = [
        make_item(SeriesInstanceUID=series_uid, ReferencedInstanceSequence=instances)
    ]


def _locate(
    image: Dataset, identity: Identity, source: SourceSeries, index: int, size_px: tuple[int, ...]
) -> None:
    """Add frame of reference and image plane: of the slice of the volume, which the picture shows at its own size."""
    stack = source.stack
    assert stack is not None
    whole_mm = np.array(stack.spacing_mm[1:])
    pixel_mm = whole_mm * stack.size_px / size_px
    axes = np.array(stack.direction[1:])
    # The corners of both agree; the centre of a smaller first pixel lies nearer to the corner.
    origin_mm = stack.origins_mm[index] + (pixel_mm - whole_mm) / 2 @ axes
    image.FrameOfReferenceUID = identity.header.FrameOfReferenceUID
    image.PositionReferenceIndicator = identity.header.get("PositionReferenceIndicator", "")
    image.PixelSpacing = format_numbers(pixel_mm)
    image.ImageOrientationPatient = format_numbers([*axes[1], *axes[0]])
    image.ImagePositionPatient = format_numbers(origin_mm)
    (image.SliceThickness,) = format_numbers([stack.frames[0].slice_thickness_mm or stack.spacing_mm[0]])


def make_report(identity: Identity, source: SourceSeries, answer: StudyAnswer) -> Dataset:
    """Make a Comprehensive SR (TID 1500; PS3.16 A, PS3.3 A.35.3).

    One measurement group is about the cervical spine: the probability of a fracture, the call, and the key slices. If a
    segmentation names the vertebrae, one more group is about each.
    """
    algorithm = _identify_algorithm(answer)
    groups = [_make_study_group(identity, source, answer, algorithm)]
    groups += [
        _make_level_group(identity, level, prob, algorithm)
        for level, prob in sorted(answer.level_probs.items())
    ]
    device = DeviceObserverIdentifyingAttributes(
        uid=_DEVICE_ROOT.map_uid(cspine.__version__),
        name="cspine",
        manufacturer_name=MANUFACTURER,
        model_name=f"cspine {cspine.__version__}",
    )
    measurements = MeasurementReport(
        observation_context=ObservationContext(
            observer_device_context=ObserverContext(
                observer_type=codes.DCM.Device, observer_identifying_attributes=device
            )
        ),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
    )
    measurements[0].ContentSequence.extend(
        TextContentItem(name=codes.DCM.Comment, value=text, relationship_type=RelationshipTypeValues.CONTAINS)
        for text in _list_comments(identity, answer)
    )
    # The whole series is what was looked at; the first of it brings patient and study.
    evidence = identity.make_references(source.frames)
    report = ComprehensiveSR(
        evidence=[identity.header, *evidence],
        content=measurements[0],
        device_serial_number=cspine.__version__,
        is_complete=True,
        specific_character_set=CHARACTER_SET,
        **identity.describe_object("report", _REPORT),
    )
    identity.finish(report)
    return report


def _identify_algorithm(answer: StudyAnswer) -> AlgorithmIdentification:
    parameters = [f"checkpoint={digest}" for digest in answer.checkpoint_hashes]
    parameters += [f"threshold={answer.threshold:.{_DECIMALS}g}", f"aggregation={answer.aggregation}"]
    return AlgorithmIdentification(
        name="cspine", version=cspine.__version__, parameters=parameters, manufacturer=MANUFACTURER
    )


def _make_study_group(
    identity: Identity, source: SourceSeries, answer: StudyAnswer, algorithm: AlgorithmIdentification
) -> MeasurementsAndQualitativeEvaluations:
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=identity.make_uid("tracking"), identifier="cspine: cervical spine"
        ),
        finding_type=FRACTURE,
        finding_sites=[FindingSite(codes.SCT.CervicalSpine)],
        algorithm_id=algorithm,
        measurements=[] if answer.prob is None else [_measure(answer.prob)],
        qualitative_evaluations=[QualitativeEvaluation(FRACTURE, CALLS[answer.call])],
        source_images=[
            _reference(identity, frame)
            for frame in source.list_frames(answer.key_slices if source.stack else ())
        ],
    )


def _make_level_group(
    identity: Identity, level: str, prob: float, algorithm: AlgorithmIdentification
) -> MeasurementsAndQualitativeEvaluations:
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=identity.make_uid("tracking", level), identifier=f"cspine: {level}"
        ),
        finding_type=FRACTURE,
        finding_sites=[FindingSite(LEVELS[level])],
        algorithm_id=algorithm,
        measurements=[_measure(prob)],
    )


def _measure(prob: float) -> Measurement:
    return Measurement(name=codes.DCM.Probability, value=round(prob, _DECIMALS), unit=codes.UCUM.NoUnits)


def _reference(identity: Identity, frame: Frame) -> SourceImageForMeasurementGroup:
    return SourceImageForMeasurementGroup(
        referenced_sop_class_uid=str(frame.sop_class_uid),
        referenced_sop_instance_uid=identity.map_uid(str(frame.sop_instance_uid)),
        referenced_frame_numbers=None if frame.index is None else [frame.index + 1],
    )


def _list_comments(identity: Identity, answer: StudyAnswer) -> Sequence[str]:
    texts = [f"{NOTICE}. The output of research software; it is no diagnosis and nobody has verified it."]
    for one in answer.abstentions:
        detail = one.detail if identity.deidentify is None else _WITHOUT_DETAIL[one.reason]
        texts.append(f"No call is made ({one.reason}): {detail}")
    return texts
