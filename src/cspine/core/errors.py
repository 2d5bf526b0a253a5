"""What can go wrong, said once and clearly.

Every error that a user can cause derives from `CspineError` and answers three questions: what was wrong, where,
and what to do about it. The command line prints exactly that and exits with `exit_code`; it never shows a traceback
for one of these. Nothing here may carry pixel values, names or ids of patients.
"""

from __future__ import annotations


class CspineError(Exception):
    """An error that the user can act on.

    Args:
        what: What was wrong, as one sentence.
        where: The file, option, key or row at fault.
        fix: What to do about it, as one sentence in the imperative.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


class InputError(CspineError):
    """Files, folders, tables or options that cannot be used as given."""


class ImageError(InputError):
    """One image file that cannot be read as a CT slice. `what` is the reason, `where` the path."""


class ManifestError(InputError):
    """A table of slices that breaks the manifest's schema or rules."""


class ExperimentError(InputError):
    """An experiment file, or a `--set` override, that does not validate."""


class RecipeError(CspineError):
    """A preprocessing recipe that does not fit the slice or the checkpoint it is used with."""


class CheckpointError(CspineError):
    """A checkpoint that is damaged, foreign, or belongs to something else than it is used for."""


class ExportError(CspineError):
    """An exported model that does not answer as its checkpoint does: the result says no."""

    exit_code = 1


class WeightsError(CspineError):
    """Pretrained weights that cannot be had or do not fit the backbone."""


class TrainingError(CspineError):
    """Training that cannot go on, such as a loss that is not finite."""


class PredictionsError(CspineError):
    """A table of predictions that must not be evaluated: duplicates, gaps, NaN, mixed origins."""


class OutputError(CspineError):
    """An output that could not be written: a full disk, a folder that is in use, a missing permission."""


class MissingExtraError(CspineError):
    """A feature whose optional dependencies are not installed; names the extra that brings them."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs packages that are not installed", fix=f"pip install 'cspine[{extra}]'"
        )
