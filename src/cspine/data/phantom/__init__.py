"""Procedural necks for CT: a data set whose truth is known, made from a seed."""

from cspine.data.phantom.anatomy import LEVELS
from cspine.data.phantom.dataset import LABEL_COLUMNS, write_phantom
from cspine.data.phantom.fractures import FRACTURE_KINDS
from cspine.data.phantom.patient import PhantomPatient, PhantomSettings, make_patient
from cspine.data.phantom.sampling import PhantomSlice, sample_slices
from cspine.data.phantom.scanner import (
    PhantomVolume,
    render_plane,
    render_volume,
    to_display8,
    without_fractures,
)

__all__ = [
    "FRACTURE_KINDS",
    "LABEL_COLUMNS",
    "LEVELS",
    "PhantomPatient",
    "PhantomSettings",
    "PhantomSlice",
    "PhantomVolume",
    "make_patient",
    "render_plane",
    "render_volume",
    "sample_slices",
    "to_display8",
    "without_fractures",
    "write_phantom",
]
