"""Intake: what may be wrong with a series, and what is done about it.

A reason is a stable name (docs/intake.md); the policy says for each whether a series with it is refused, corrected or
taken with a warning. Nothing is corrected in silence: every finding is in the series' row.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cspine.core.answers import Action, IntakeFinding, Reason
from cspine.core.errors import InputError
from cspine.ct.volume import RELEASE_EVERY, release_pages


@dataclass(frozen=True, slots=True)
class ReasonRule:
    """What a policy may do about a reason.

    Attributes:
        means: What was found, as one sentence.
        actions: What a policy may choose from; the first is the default.
        correction: How it is corrected, if it can be.
    """

    means: str
    actions: tuple[Action, ...]
    correction: str = ""


# Of the voxels one in a hundred must be as dense as air, and as soft tissue.
_LEAST_FRACTION = 0.01
_EVERY_PX = 4
_R, _C, _W = Action.REFUSE, Action.CORRECT, Action.WARN

RULES: Mapping[Reason, ReasonRule] = {
    Reason.NOT_DICOM: ReasonRule("A file that was named is not DICOM.", (_R,)),
    Reason.DAMAGED_FILE: ReasonRule(
        "A DICOM file whose header, a zip whose directory, or a folder that cannot be read.", (_R,)
    ),
    Reason.MISSING_FILE: ReasonRule("A DICOMDIR names files that are not there.", (_W, _R)),
    Reason.NOT_CT: ReasonRule(
        "Another modality, or an object that holds no CT image (PS3.3 A.3, A.38).", (_R,)
    ),
    Reason.LOCALIZER: ReasonRule(
        "A localizer (scout, topogram), by Image Type.",
        (_C, _R),
        "Localizers among other slices are left out.",
    ),
    Reason.DERIVED_IMAGE: ReasonRule(
        "Image Type says DERIVED: a reformat, projection or screen copy.", (_W, _R)
    ),
    Reason.CONTRADICTORY_IDS: ReasonRule(
        "No Series Instance UID, or one in several studies or patients; one SOP Instance UID at several positions.",
        (_R,),
    ),
    Reason.CONTRADICTORY_SIZES: ReasonRule(
        "Slices of one series differ in rows, columns or pixel spacing.",
        (_R, _C),
        "The largest group of equal slices is kept.",
    ),
    Reason.MISSING_POSITION: ReasonRule(
        "No usable Image Position or Image Orientation (Patient).",
        (_R, _C),
        "Where every slice has a Slice Location, that orders them, as an axial scan of a supine patient. Left and "
        "right are then not known from the file.",
    ),
    Reason.MISSING_SPACING: ReasonRule("No usable Pixel Spacing.", (_R,)),
    Reason.MIXED_ORIENTATION: ReasonRule(
        "Slices of one series lie at different angles.",
        (_R, _C),
        "The largest group of parallel slices is kept.",
    ),
    Reason.NOT_AXIAL: ReasonRule("The slices are sagittal, coronal or too oblique.", (_R,)),
    Reason.TURNED: ReasonRule(
        "Rows or columns run the other way than in a supine axial scan (prone, feet first, turned display).",
        (_C, _R),
        "Rows and columns are reversed or swapped, which moves no voxel in the patient.",
    ),
    Reason.SEVERAL_ACQUISITIONS: ReasonRule(
        "Acquisitions of one series overlap in position.",
        (_C, _R),
        "The acquisition with most slices is kept.",
    ),
    Reason.DUPLICATE_POSITIONS: ReasonRule(
        "Several slices at one position.",
        (_C, _R),
        "Where they are the same picture, one is kept; different pictures at one position are refused.",
    ),
    Reason.GANTRY_TILT: ReasonRule(
        "The slices are not stacked along their normal: the gantry was tilted.",
        (_C, _W, _R),
        "Each slice is shifted within its plane (linear interpolation), on a canvas large enough to lose nothing.",
    ),
    Reason.SHIFTED_SLICES: ReasonRule(
        "The field of view moves between slices.", (_C, _W, _R), "As for gantry tilt: each slice is shifted."
    ),
    Reason.MISSING_SLICES: ReasonRule(
        "Gaps of a whole number of slice distances.",
        (_R, _C, _W),
        "Gaps up to max_gap_mm are filled by linear interpolation; a wider one is refused.",
    ),
    Reason.UNEVEN_SPACING: ReasonRule(
        "Slice distances that differ otherwise.",
        (_W, _C, _R),
        "All slices are interpolated linearly to an even grid at the median distance; a gap over max_gap_mm is "
        "refused.",
    ),
    Reason.TOO_FEW_SLICES: ReasonRule("Fewer slices than min_slices.", (_R, _W)),
    Reason.NO_CERVICAL_EXTENT: ReasonRule(
        "The slices span less of the body axis than min_extent_mm: too short for a cervical spine.", (_R, _W)
    ),
    Reason.MISSING_RESCALE: ReasonRule(
        "Neither Rescale Slope and Intercept nor a Modality LUT (PS3.3 C.11.1).",
        (_R, _C),
        "Stored values are taken as HU where the picture then has plausible air and soft tissue; else refused.",
    ),
    Reason.NOT_HU: ReasonRule("The rescaled values are said to be something other than HU.", (_R, _W)),
    Reason.IMPLAUSIBLE_HU: ReasonRule("Hardly any voxel has the HU of air, or of soft tissue.", (_W, _R)),
    Reason.CLIPPED_HU: ReasonRule("Values beyond int16 were clipped.", (_W, _R)),
    Reason.LOSSY_COMPRESSION: ReasonRule("The pixels were compressed with loss.", (_W, _R)),
    Reason.UNDECODABLE: ReasonRule(
        "Pixel data that is absent, cut short, or cannot be decoded.",
        (_R, _C),
        "Those slices are left out; the gap that stays is judged as missing slices.",
    ),
    Reason.UNUSABLE_NIFTI: ReasonRule(
        "A NIfTI file that is damaged, no 3-D volume, without an orientation, sheared, or not in HU.", (_R,)
    ),
}
"""Every reason with what a policy may do about it; docs/intake.md shows the same table."""


class IntakePolicy(BaseModel):
    """What to do about each reason, and where the limits are.

    Attributes:
        actions: Reason to action, for those that differ from the defaults in `RULES`.
        min_slices: Fewer are `too-few-slices`.
        min_extent_mm: A shorter span along the body axis is `no-cervical-extent`. C1 to C7 of an adult is about 100 to
            130 mm long.
        max_oblique_deg: Between the normal and the body axis; more is `not-axial`.
        orientation_deg: Slices that differ more are `mixed-orientation`.
        tilt_deg: Between the normal and the line of the slices; more is `gantry-tilt`.
        spacing_tolerance: Fraction of the median slice distance by which one may differ.
        max_gap_mm: The widest gap that a correction may fill.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    actions: dict[Reason, Action] = {}
    min_slices: int = Field(default=10, ge=1)
    min_extent_mm: float = Field(default=60.0, ge=0)
    max_oblique_deg: float = Field(default=45.0, gt=0, le=45)
    orientation_deg: float = Field(default=1.0, gt=0, le=10)
    tilt_deg: float = Field(default=0.5, gt=0, le=10)
    spacing_tolerance: float = Field(default=0.05, gt=0, le=0.25)
    max_gap_mm: float = Field(default=10.0, gt=0)

    @model_validator(mode="after")
    def _only_possible_actions(self) -> IntakePolicy:
        for reason, action in self.actions.items():
            if action not in RULES[reason].actions:
                choice = ", ".join(RULES[reason].actions)
                raise ValueError(f"{reason} cannot be met with '{action}'; choose from: {choice}")
        return self

    def find_action(self, reason: Reason) -> Action:
        """Return what this policy does about a reason."""
        return self.actions.get(reason, RULES[reason].actions[0])


def read_policy(path: Path) -> IntakePolicy:
    """Read a policy from a TOML file with the fields of `IntakePolicy`.

    Raises:
        InputError: it cannot be read, or a field does not fit; the message names the field.
    """
    try:
        return IntakePolicy.model_validate(tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "actions"
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{field}: {message}", where=str(path), fix="see docs/intake.md") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"the intake policy cannot be read: {error}", where=str(path), fix="name a TOML file"
        ) from None


class IntakeFindings:
    """Collects what is found in one series while it is checked."""

    def __init__(self, policy: IntakePolicy) -> None:
        self.policy = policy
        self.findings: list[IntakeFinding] = []

    def report(self, reason: Reason, detail: str, *, correctable: bool = True) -> Action:
        """Add a finding and return what to do; `CORRECT` becomes `REFUSE` if it cannot be corrected here."""
        action = self.policy.find_action(reason)
        if action is Action.CORRECT and not correctable:
            action = Action.REFUSE
        self.findings.append(IntakeFinding(reason=reason, action=action, detail=detail))
        return action

    @property
    def refused(self) -> bool:
        """Whether a reason to refuse has been found."""
        return any(finding.action is Action.REFUSE for finding in self.findings)

    def __contains__(self, reason: Reason) -> bool:
        return any(finding.reason is reason for finding in self.findings)


def check_extent(
    count: int,
    positions_mm: npt.NDArray[np.float64],
    normal: Sequence[float] | npt.NDArray[np.float64],
    found: IntakeFindings,
) -> float:
    """Check how many slices there are and how much of the body axis their centres span; return the latter in mm."""
    policy = found.policy
    if count < policy.min_slices:
        found.report(Reason.TOO_FEW_SLICES, f"{count}, and at least {policy.min_slices} are asked for")
    extent_mm = float((positions_mm.max() - positions_mm.min()) * abs(normal[2]))
    if extent_mm < policy.min_extent_mm:
        found.report(
            Reason.NO_CERVICAL_EXTENT,
            f"{extent_mm:.0f} mm along the body, and at least {policy.min_extent_mm:.0f} mm are asked for",
        )
    return round(extent_mm, 2)


def check_values(hu: npt.NDArray[np.int16], found: IntakeFindings) -> bool:
    """Check that some voxels are as air (padding counts as such) and some as soft tissue; return whether they are."""
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
    found.report(Reason.IMPLAUSIBLE_HU, detail)
    return False
