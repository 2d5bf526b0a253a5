"""Overlays as a series of Secondary Capture images: what every viewer shows, beside the slices (PS3.3 A.8.1).

Single-frame objects in RGB, one for each slice, in the source's frame of reference (A.8.1.3 allows the
Image Plane module there), so that a viewer scrolls them along with the series.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt
from highdicom.sc import SCImage
from pydicom.dataset import Dataset

import cspine
from cspine.studies.outputs.identity import MANUFACTURER, NOTICE, Identity
from cspine.studies.outputs.items import format_numbers, make_item, make_source_item
from cspine.studies.outputs.source import SourceSeries, make_references

Picture = npt.NDArray[np.uint8]
Size = tuple[int, ...]

_MIN_COLUMNS_PX = 480
_STRIP_FRACTION = 0.06


def make_overlays(
    identity: Identity,
    source: SourceSeries,
    overlays: Mapping[int, Picture],
    *,
    series_number: int,
    content: str,
) -> list[Dataset]:
    """Make one image for each picture, from feet to head.

    Args:
        identity: Whose.
        source: The series that the pictures are of.
        overlays: Slice of the volume to (rows, columns, 3) RGB, the whole slice at any size.
        series_number: Of the new series.
        content: What UIDs follow from where they are to be the same in every run.

    Raises:
        ValueError: a picture is not of a whole slice of the volume.
    """
    series_uid = identity.make_uid("overlay series", content)
    return [
        _make_overlay(identity, source, index, overlays[index], number, series_uid, series_number, content)
        for number, index in enumerate(sorted(overlays), start=1)
    ]


def _make_overlay(
    identity: Identity,
    source: SourceSeries,
    index: int,
    picture: Picture,
    number: int,
    series_uid: str,
    series_number: int,
    content: str,
) -> Dataset:
    shown = _enlarge(picture, source, index)
    header = identity.header
    image = SCImage(
        pixel_array=_burn_notice(shown),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        # The volume's own: columns to the left, rows to the back.
        patient_orientation=("L", "P"),
        study_instance_uid=header.StudyInstanceUID,
        series_instance_uid=series_uid,
        series_number=series_number,
        sop_instance_uid=identity.make_uid("overlay", number, content),
        instance_number=number,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="cspine",
        software_versions=cspine.__version__,
        series_description=f"cspine overlay - {NOTICE}"[:64],
        content_date=identity.created.date(),
        content_time=identity.created.time(),
    )
    image.copy_patient_and_study_information(header)
    # The notice identifies nobody, and no other text is drawn (PS3.3 C.7.6.1).
    image.BurnedInAnnotation = "NO"
    image.ImageComments = NOTICE
    image.DateOfSecondaryCapture = image.ContentDate
    image.TimeOfSecondaryCapture = image.ContentTime
    _refer(image, identity, source, index)
    if source.has_place:
        _locate(image, identity, source, index, shown.shape[:2])
    identity.finish(image)
    return image


def _enlarge(picture: Picture, source: SourceSeries, index: int) -> Picture:
    """The picture, enlarged by a whole factor where it is too small to be read."""
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
    """The picture with the notice on a strip below it, where it hides nothing of the patient."""
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
    references = [identity.map_reference(one) for one in make_references(frames)]
    instances = [
        make_item(ReferencedSOPClassUID=one.SOPClassUID, ReferencedSOPInstanceUID=one.SOPInstanceUID)
        for one in references
    ]
    series_uid = references[0].SeriesInstanceUID
    image.ReferencedSeriesSequence = [
        make_item(SeriesInstanceUID=series_uid, ReferencedInstanceSequence=instances)
    ]


def _locate(image: Dataset, identity: Identity, source: SourceSeries, index: int, size_px: Size) -> None:
    """Frame of reference and image plane: of the slice of the volume, which the picture shows at its own size."""
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
    (image.SliceThickness,) = format_numbers([stack.frames[0].thickness_mm or stack.spacing_mm[0]])
