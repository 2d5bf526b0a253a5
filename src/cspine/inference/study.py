"""From the slices of a series to an answer about the study, by one model or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from cspine.aggregation import UNFITTED, Aggregation, find_carrying
from cspine.errors import InputError, RecipeError
from cspine.inference.predictor import Predictor
from cspine.models.familiarity import measure_study
from cspine.studies.answer import Abstention, AbstentionReason, StudyAnswer
from cspine.studies.intake import Action, IntakeRow
from cspine.studies.series import SeriesSlices

Floats = npt.NDArray[np.float64]
Levels = Sequence[str | None]
Scores = tuple[Floats, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class _Vote:
    """What one model says: raw and calibrated logits of slices, the study's, and how strange the study is to it."""

    logits: Floats
    calibrated: Floats
    study: float
    distance: float | None
    limit: float | None
    level_logits: dict[str, float]


class StudyPredictor:
    """Answers about series, by the mean of its models.

    Every model reads the slices through its own recipe and makes a study's logit by its own rule. Of several models the
    mean is taken of slice logits and of study logits, and the threshold is the mean of theirs on the logit scale. No
    call is made where the study is too strange to any of them.

    Args:
        predictors: At least one, all for the same kind of slices.

    Raises:
        InputError: there is none, or some take HU and some take 8-bit pictures.
    """

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        if not predictors:
            raise InputError("there is no model to answer", fix="name a checkpoint")
        domains = {predictor.recipe.domain for predictor in predictors}
        if len(domains) > 1:
            raise InputError(
                "the models do not take the same slices: some take Hounsfield units, some 8-bit pictures",
                fix="name models of one kind",
            )
        self.predictors = tuple(predictors)
        self.checkpoint_hashes = tuple(predictor.checkpoint_hash for predictor in predictors)
        self._rules = [predictor.header.aggregation or UNFITTED for predictor in predictors]

    @property
    def aggregation(self) -> str:
        """How slices become a study, in words."""
        words = list(dict.fromkeys(str(rule) for rule in self._rules))
        return words[0] if len(self._rules) == 1 else f"mean of {len(self._rules)} models: {'; '.join(words)}"

    @property
    def threshold(self) -> float:
        """Of a study's probability."""
        levels = np.array([rule.threshold for rule in self._rules])
        return float(levels[0]) if len(levels) == 1 else float(expit(logit(levels).mean()))

    def score(self, slices: SeriesSlices) -> list[Scores]:
        """What each model's network says of every slice, and what its head was given.

        Raises:
            RecipeError: a model does not take these slices.
        """
        return [
            predictor.predict_read(
                len(slices.slice_ids), partial(slices.read, offsets_mm=predictor.recipe.offsets_mm)
            )
            for predictor in self.predictors
        ]

    def answer(
        self,
        slices: SeriesSlices | None,
        intake: IntakeRow,
        levels: Levels = (),
        scores: Sequence[Scores] | None = None,
    ) -> StudyAnswer:
        """Answer about one series.

        Args:
            slices: None where intake refused the series.
            intake: How it was read.
            levels: "C1" to "C7" or None for each slice; empty where nothing says.
            scores: What `score` said of the slices, where they are scored already.
        """
        if slices is None:
            refused = [finding for finding in intake.findings if finding.action is Action.REFUSE]
            detail = ", ".join(dict.fromkeys(str(finding.reason) for finding in refused)) or "no slices"
            return self._abstain(intake, AbstentionReason(Abstention.INTAKE_REFUSED, detail))
        try:
            scores = self.score(slices) if scores is None else scores
        except RecipeError as error:
            return self._abstain(intake, AbstentionReason(Abstention.UNFIT_RECIPE, error.what))
        votes = [
            _vote(predictor, rule, one, levels)
            for predictor, rule, one in zip(self.predictors, self._rules, scores, strict=True)
        ]
        logits = np.mean([vote.logits for vote in votes], axis=0)
        study = float(np.mean([vote.study for vote in votes]))
        strange, reasons = _judge(votes)
        level_probs = {
            level: float(expit(np.mean([vote.level_logits[level] for vote in votes])))
            for level in votes[0].level_logits
        }
        return StudyAnswer(
            intake=intake,
            slice_ids=slices.slice_ids,
            positions_mm=slices.positions_mm,
            logits=logits,
            probs=expit(np.mean([vote.calibrated for vote in votes], axis=0)),
            levels=tuple(levels),
            logit=study,
            prob=float(expit(study)),
            threshold=self.threshold,
            carrying=find_carrying(logits),
            level_probs=level_probs,
            abstentions=reasons,
            distance=strange.distance,
            distance_limit=strange.limit,
            aggregation=self.aggregation,
            checkpoint_hashes=self.checkpoint_hashes,
        )

    def _abstain(self, intake: IntakeRow, reason: AbstentionReason) -> StudyAnswer:
        nothing = np.empty(0)
        return StudyAnswer(
            intake=intake,
            slice_ids=(),
            positions_mm=nothing,
            logits=nothing,
            probs=nothing,
            levels=(),
            logit=None,
            prob=None,
            threshold=self.threshold,
            carrying=(),
            level_probs={},
            abstentions=(reason,),
            distance=None,
            distance_limit=None,
            aggregation=self.aggregation,
            checkpoint_hashes=self.checkpoint_hashes,
        )


def _vote(predictor: Predictor, rule: Aggregation, scores: Scores, levels: Levels) -> _Vote:
    logits, features = scores
    distances = predictor.measure_distances(features)
    level_probs = rule.find_level_probabilities(logits, tuple(levels)) if levels else {}
    return _Vote(
        logits=logits,
        calibrated=predictor.calibrate(logits),
        study=rule.find_logit(logits),
        distance=None if distances is None else measure_study(distances),
        limit=None if distances is None else predictor.header.distance_limit,
        level_logits={level: float(logit(prob)) for level, prob in level_probs.items()},
    )


def _judge(votes: Sequence[_Vote]) -> tuple[_Vote, tuple[AbstentionReason, ...]]:
    """The vote of the model to which the study is strangest, and the reason not to call it, where there is one."""

    def exceed(vote: _Vote) -> float:
        return vote.distance / vote.limit if vote.distance is not None and vote.limit else 0.0

    strange = max(votes, key=exceed)
    if exceed(strange) <= 1:
        return strange, ()
    detail = f"distance {strange.distance:.2f} from the training, limit {strange.limit:.2f}"
    return strange, (AbstentionReason(Abstention.OUT_OF_DISTRIBUTION, detail),)
