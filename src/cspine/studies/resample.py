"""A volume cut along other planes: what an oblique, tilted or uneven scan of the same patient would show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates

from cspine.studies.volume import PADDING_HU, Volume


def resample_volume(
    volume: Volume,
    *,
    direction: tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]],
    origins_mm: npt.NDArray[np.float64],
    size_px: tuple[int, int],
    spacing_mm: tuple[float, float, float],
    nearest: bool = False,
) -> Volume:
    """Cut a volume along other planes (linear interpolation); outside it is `PADDING_HU`.

    Args:
        volume: Evenly spaced, or of a tilted gantry.
        direction, origins_mm, spacing_mm: Of the new volume, as in `Volume`.
        size_px: (rows, columns) of the new volume.
        nearest: Take the nearest voxel, as labels need.

    Returns:
        A volume of the same patient, study and series, without instance UIDs: its slices are none of the source's.
    """
    to_index = np.linalg.inv(volume.affine)
    down = np.asarray(direction[1]) * spacing_mm[1]
    right = np.asarray(direction[2]) * spacing_mm[2]
    rows, columns = np.meshgrid(np.arange(size_px[0]), np.arange(size_px[1]), indexing="ij")
    within = rows[..., None] * down + columns[..., None] * right
    options: dict[str, Any] = {"order": 0 if nearest else 1, "mode": "constant", "cval": PADDING_HU}
    source = volume.hu.astype(np.float32)
    planes = []
    for origin in origins_mm:
        index = (origin + within) @ to_index[:3, :3].T + to_index[:3, 3]
        values = map_coordinates(source, np.moveaxis(index, -1, 0), **options)
        planes.append(np.rint(values).astype(np.int16))
    return replace(
        volume,
        hu=np.stack(planes),
        direction=direction,
        origins_mm=np.asarray(origins_mm, np.float64),
        spacing_mm=spacing_mm,
        sop_instance_uids=(),
        frame_numbers=(),
    )
