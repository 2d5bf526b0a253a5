"""What intake checks of a volume whatever it was read from: how much of a neck it spans, and what its values are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cspine.studies.intake import Findings, Reason
from cspine.studies.voxels import RELEASE_EVERY, release_pages

# Of the voxels one in a hundred must be as dense as air (padding counts as such), and as soft tissue.
_LEAST_FRACTION = 0.01
_EVERY_PX = 4


def check_extent(
    count: int,
    positions_mm: npt.NDArray[np.float64],
    normal: Sequence[float] | npt.NDArray[np.float64],
    found: Findings,
) -> float:
    """Check how many slices there are and how much of the body axis their middles span, in mm; returns the latter."""
    policy = found.policy
    if count < policy.min_slices:
        found.meet(Reason.TOO_FEW_SLICES, f"{count}, and at least {policy.min_slices} are asked for")
    extent_mm = float((positions_mm.max() - positions_mm.min()) * abs(normal[2]))
    if extent_mm < policy.min_extent_mm:
        found.meet(
            Reason.NO_CERVICAL_EXTENT,
            f"{extent_mm:.0f} mm along the body, and at least {policy.min_extent_mm:.0f} mm are asked for",
        )
    return round(extent_mm, 2)


def check_values(hu: npt.NDArray[np.int16], found: Findings) -> bool:
    """Check that some voxels are as air and some as soft tissue; False where they are not."""
    airy = softish = sampled = 0
    for start in range(0, len(hu), RELEASE_EVERY):
        sample = hu[start : start + RELEASE_EVERY, ::_EVERY_PX, ::_EVERY_PX]
        airy += int(np.count_nonzero(sample < -700))
        softish += int(np.count_nonzero((sample > -200) & (sample < 300)))
        sampled += sample.size
        release_pages(hu)
    air, soft = airy / sampled, softish / sampled
    if min(air, soft) >= _LEAST_FRACTION:
        return True
    detail = f"{air:.1%} of the voxels are as air (below -700 HU), {soft:.1%} as soft tissue (-200 to 300 HU)"
    found.meet(Reason.IMPLAUSIBLE_HU, detail)
    return False
