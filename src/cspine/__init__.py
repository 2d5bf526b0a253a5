"""cspine: train, compare and audit classifiers that find cervical spine fractures on CT.

The public names are those of `__all__`. Each is loaded from its module at first use, so `import cspine` is quick and
loads no torch:

    import cspine

    manifest, report = cspine.import_dataset("folder")
    logits = cspine.Predictor.load("checkpoint.safetensors").predict_slices([manifest.read_slice("a-slice-id")])

Whatever is not in `__all__` may change without notice.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cspine.answering import FractureModel as FractureModel
    from cspine.answering import StudyOptions as StudyOptions
    from cspine.answering import load as load
    from cspine.claims.check import check_claims as check_claims
    from cspine.comparison.audit import Audit as Audit
    from cspine.comparison.audit import audit as audit
    from cspine.comparison.compare import compare as compare
    from cspine.comparison.compare import run_comparison as run_comparison
    from cspine.core.errors import CspineError as CspineError
    from cspine.core.estimates import Estimate as Estimate
    from cspine.core.estimates import EvaluationResult as EvaluationResult
    from cspine.core.predictions import read_predictions as read_predictions
    from cspine.core.predictions import write_predictions as write_predictions
    from cspine.core.types import Label as Label
    from cspine.core.types import Slice as Slice
    from cspine.core.types import Split as Split
    from cspine.data.cache import SliceCache as SliceCache
    from cspine.data.layouts import ImportReport as ImportReport
    from cspine.data.layouts import import_dataset as import_dataset
    from cspine.data.manifest import Manifest as Manifest
    from cspine.data.manifest import read_manifest as read_manifest
    from cspine.data.manifest import write_manifest as write_manifest
    from cspine.evaluating import Comparison as Comparison
    from cspine.evaluating import Evaluation as Evaluation
    from cspine.evaluating import assess_calibration as assess_calibration
    from cspine.evaluating import evaluate as evaluate
    from cspine.experiment import Experiment as Experiment
    from cspine.experiment import read_experiment as read_experiment
    from cspine.inference.predictor import Predictor as Predictor
    from cspine.models.checkpoint import Checkpoint as Checkpoint
    from cspine.models.checkpoint import load_checkpoint as load_checkpoint
    from cspine.models.header import ModelSpec as ModelSpec
    from cspine.phantom.dataset import PhantomSettings as PhantomSettings
    from cspine.phantom.dataset import write_phantom as write_phantom
    from cspine.preprocess import Recipe as Recipe
    from cspine.report.report import read_results as read_results
    from cspine.report.report import write_report as write_report
    from cspine.report.results import ComparisonResults as ComparisonResults

# The same as above, for Python at run time; a test holds the two together.
_HOME = {
    "Audit": "cspine.comparison.audit",
    "audit": "cspine.comparison.audit",
    "check_claims": "cspine.claims.check",
    "compare": "cspine.comparison.compare",
    "FractureModel": "cspine.answering",
    "StudyOptions": "cspine.answering",
    "load": "cspine.answering",
    "Comparison": "cspine.evaluating",
    "Evaluation": "cspine.evaluating",
    "Checkpoint": "cspine.models.checkpoint",
    "ComparisonResults": "cspine.report.results",
    "CspineError": "cspine.core.errors",
    "Estimate": "cspine.core.estimates",
    "EvaluationResult": "cspine.core.estimates",
    "Experiment": "cspine.experiment",
    "ImportReport": "cspine.data.layouts",
    "Label": "cspine.core.types",
    "Manifest": "cspine.data.manifest",
    "ModelSpec": "cspine.models.header",
    "PhantomSettings": "cspine.phantom.dataset",
    "Predictor": "cspine.inference.predictor",
    "Recipe": "cspine.preprocess",
    "Slice": "cspine.core.types",
    "SliceCache": "cspine.data.cache",
    "Split": "cspine.core.types",
    "assess_calibration": "cspine.evaluating",
    "evaluate": "cspine.evaluating",
    "import_dataset": "cspine.data.layouts",
    "load_checkpoint": "cspine.models.checkpoint",
    "read_experiment": "cspine.experiment",
    "read_manifest": "cspine.data.manifest",
    "read_predictions": "cspine.core.predictions",
    "read_results": "cspine.report.report",
    "run_comparison": "cspine.comparison.compare",
    "write_manifest": "cspine.data.manifest",
    "write_phantom": "cspine.phantom.dataset",
    "write_predictions": "cspine.core.predictions",
    "write_report": "cspine.report.report",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = import_module("importlib.metadata").version("cspine")
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'cspine' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
