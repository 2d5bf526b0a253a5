"""Items of sequences, and numbers, as several objects hold them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.valuerep import format_number_as_ds

from cspine.studies.dicom_header import Frame
from cspine.studies.outputs.identity import Identity


def make_item(**attributes: Any) -> Dataset:
    """A data set of these attributes, by keyword."""
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def make_code(code: Code) -> Dataset:
    """An item of a code sequence (PS3.3 8.8)."""
    return make_item(
        CodeValue=code.value, CodingSchemeDesignator=code.scheme_designator, CodeMeaning=code.meaning
    )


def make_source_item(identity: Identity, frame: Frame, **attributes: Any) -> Dataset:
    """An item of Source Image Sequence: the instance, and the frame in a multi-frame one."""
    item = make_item(
        ReferencedSOPClassUID=frame.sop_class,
        ReferencedSOPInstanceUID=identity.map_uid(str(frame.sop_uid)),
        PurposeOfReferenceCodeSequence=[make_code(codes.DCM.SourceImageForImageProcessingOperation)],
        **attributes,
    )
    if frame.index is not None:
        item.ReferencedFrameNumber = frame.index + 1
    return item


def format_numbers(values: Iterable[float]) -> list[str]:
    """As decimal strings, which have 16 characters at most (PS3.5 6.2)."""
    return [format_number_as_ds(float(value)) for value in values]
