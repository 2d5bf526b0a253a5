"""Heat maps as a Parametric Map: one frame for each slice that has one (PS3.3 A.75).

A parametric map and not a segmentation: heat says what a network looked at, which is no outline of a fracture and no
probability of one in a voxel. Values are stored as 16 bits, which every viewer can show, with the mapping back to 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from highdicom import (
    PixelMeasuresSequence,
    PlaneOrientationSequence,
    PlanePositionSequence,
    VOILUTTransformation,
)
from highdicom.pm import ParametricMap, RealWorldValueMapping
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

import cspine
from cspine.errors import InputError
from cspine.studies.dicom_header import Frame
from cspine.studies.outputs.identity import CHARACTER_SET, MANUFACTURER, NOTICE, Identity
from cspine.studies.outputs.items import format_numbers, make_code, make_item, make_source_item
from cspine.studies.outputs.source import SourceSeries, make_references

_FULL = 65535
_CENTER, _WIDTH = 32768, 65536


@dataclass(frozen=True)
class Heat:
    """Where a model looked.

    Attributes:
        slices: (n,) Numbers of slices of the volume, none twice.
        maps: (n, rows, columns) float32, 0..1, on the grid of the volume.
        method: How they were made, such as "Grad-CAM".
    """

    slices: tuple[int, ...]
    maps: npt.NDArray[np.float32]
    method: str

    def __post_init__(self) -> None:
        if self.maps.ndim != 3 or len(self.maps) != len(self.slices) or not len(self.maps):
            raise ValueError(f"{len(self.slices)} slices need as many maps, not {self.maps.shape}")
        if len(set(self.slices)) != len(self.slices):
            raise ValueError("two maps are of the same slice")
        if not (np.isfinite(self.maps).all() and self.maps.min() >= 0 and self.maps.max() <= 1):
            raise ValueError("heat must lie in 0..1")


@dataclass(frozen=True)
class _Plane:
    """One frame as it is written: values, the place of its first pixel, and what it was derived from."""

    values: npt.NDArray[np.float32]
    origin_mm: Sequence[float]
    frames: tuple[Frame, ...]


def make_heat_map(
    identity: Identity, source: SourceSeries, heat: Heat, *, series_number: int, content: str
) -> Dataset:
    """Make the map: on the grid of the source's slices, or of the volume where its slices are interpolated.

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
    planes = sorted(
        _place(source, heat), key=lambda plane: float(np.dot(plane.origin_mm, stack.direction[0]))
    )
    sources = _describe_sources(identity, source, planes)
    orientation, spacing_mm = _describe_grid(source)
    result = ParametricMap(
        source_images=sources[:1] if "NumberOfFrames" in sources[0] else sources,
        further_source_images=sources[1:] if "NumberOfFrames" in sources[0] else None,
        pixel_array=np.stack([np.rint(plane.values * _FULL).astype(np.uint16) for plane in planes]),
        series_instance_uid=identity.make_uid("heat series", content),
        series_number=series_number,
        sop_instance_uid=identity.make_uid("heat", content),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="cspine",
        software_versions=cspine.__version__,
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
            pixel_spacing=spacing_mm, slice_thickness=source.frames[0].thickness_mm or stack.spacing_mm[0]
        ),
        plane_orientation=PlaneOrientationSequence("PATIENT", orientation),
        plane_positions=[PlanePositionSequence("PATIENT", plane.origin_mm) for plane in planes],
        content_label="HEAT",
        content_description=f"Where the model looked. {NOTICE}"[:64],
        content_qualification="RESEARCH",
        series_description=f"cspine heat - {NOTICE}"[:64],
        content_date=identity.created.date(),
        content_time=identity.created.time(),
        specific_character_set=CHARACTER_SET,
    )
    _settle(result, identity, source, planes, content)
    identity.finish(result)
    return result


def _place(source: SourceSeries, heat: Heat) -> list[_Plane]:
    assert source.stack is not None
    planes = []
    for index, values in zip(heat.slices, heat.maps, strict=True):
        frames = source.find_frames(index)
        if source.is_interpolated:
            planes.append(_Plane(values, tuple(map(float, source.stack.origins_mm[index])), frames))
        else:
            assert frames[0].position_mm is not None
            planes.append(_Plane(source.stack.take_back(index, values), frames[0].position_mm, frames))
    return planes


def _describe_grid(source: SourceSeries) -> tuple[list[float], tuple[float, float]]:
    """Image Orientation and Pixel Spacing of what is written."""
    stack, first = source.stack, source.frames[0]
    assert stack is not None
    if source.is_interpolated:
        return [*stack.direction[2], *stack.direction[1]], stack.spacing_mm[1:]
    first = stack.frames[0]
    assert first.orientation is not None
    assert first.pixel_spacing_mm is not None
    return [*first.orientation[0], *first.orientation[1]], first.pixel_spacing_mm


def _describe_sources(identity: Identity, source: SourceSeries, planes: Sequence[_Plane]) -> list[Dataset]:
    """Headers of the files that the planes were derived from, as far as a map needs them."""
    used = [frame for plane in planes for frame in plane.frames]
    described = []
    for reference in make_references(used):
        own = [frame for frame in source.frames if frame.sop_uid == reference.SOPInstanceUID]
        dataset = Dataset()
        dataset.update(identity.header)
        dataset.update(identity.map_reference(reference))
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
    return make_item(ImagePositionPatient=format_numbers(frame.position_mm or (0.0, 0.0, 0.0)))


def _describe_plane(frame: Frame) -> tuple[Dataset, Dataset]:
    """Pixel Measures and Plane Orientation."""
    assert frame.orientation is not None
    assert frame.pixel_spacing_mm is not None
    measures = make_item(PixelSpacing=format_numbers(frame.pixel_spacing_mm))
    if frame.thickness_mm is not None:
        measures.SliceThickness = format_numbers([frame.thickness_mm])[0]
    return measures, make_item(
        ImageOrientationPatient=format_numbers([*frame.orientation[0], *frame.orientation[1]])
    )


def _settle(
    result: ParametricMap, identity: Identity, source: SourceSeries, planes: Sequence[_Plane], content: str
) -> None:
    """Say of each frame what it was derived from, whatever the positions look like; and keep UIDs reproducible."""
    uid = identity.make_uid("heat dimensions", content)
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
