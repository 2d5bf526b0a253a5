"""From the slices of a series to an answer about the study, by one model or several."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cspine.core.aggregation import UNFITTED, Aggregation, find_key_slices
from cspine.core.answers import Abstention, AbstentionReason, Action, IntakeRow, StudyAnswer
from cspine.core.errors import InputError, RecipeError
from cspine.core.logistic import expit, logit
from cspine.ct.annotations import CtSeries
from cspine.ct.volume import SeriesSlices, StreamingVolume, Volume
from cspine.inference.answers import Answered
from cspine.inference.engines import Scores
from cspine.inference.predictor import Predictor
from cspine.models.ood import measure_study

Floats = npt.NDArray[np.float64]
Levels = Sequence[str | None]


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
                len(slices.slice_ids), partial(slices.slice, offsets_mm=predictor.recipe.offsets_mm)
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
            level: expit(float(np.mean([vote.level_logits[level] for vote in votes])))
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
            prob=expit(study),
            threshold=self.threshold,
            key_slices=find_key_slices(logits),
            level_probs=level_probs,
            abstentions=reasons,
            distance=strange.distance,
            distance_limit=strange.limit,
            aggregation=self.aggregation,
            checkpoint_hashes=self.checkpoint_hashes,
        )

    def _abstain(self, intake: IntakeRow, reason: AbstentionReason) -> StudyAnswer:
        return StudyAnswer(
            intake=intake,
            threshold=self.threshold,
            abstentions=(reason,),
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


# Answering about any number of series: scored while they are read, one ahead of the other, and each kept at once.


AHEAD_VOXELS = 120_000_000
"""A series is read ahead of the answer to the one before only where that one has at most so many voxels (0.24 GB)."""

Item = TypeVar("Item")
Result = TypeVar("Result")
MakeExtras = Callable[[CtSeries, StudyAnswer], dict[str, Any]]


class EarlyScorer:
    """Scores the slices of a series while it is being read; one series at a time.

    What intake then refuses was scored in vain. Used as a context: on leaving, what is not done is given up.

    Args:
        predictor: Who answers.
    """

    def __init__(self, predictor: StudyPredictor) -> None:
        self._predictor = predictor
        self._pool = ThreadPoolExecutor(1, "score")
        self._networks = threading.Lock()  # they are not to be shared
        self._changing = threading.Lock()
        self._begun: list[tuple[StreamingVolume, Future[list[Scores]]]] = []
        self._left = False

    def __enter__(self) -> EarlyScorer:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changing:
            self._left = True
            for streaming, _future in self._begun:
                streaming.abandon()
        self._pool.shutdown(cancel_futures=True)

    def begin(self, streaming: StreamingVolume) -> None:
        """A series is about to be read; may be called by another thread than that which asks for answers."""
        with self._changing:
            if self._left:
                streaming.abandon()
                return
            self._drop(None)
            self._begun.append((streaming, self._pool.submit(self._score, streaming)))

    def answer(self, item: CtSeries) -> StudyAnswer:
        """The answer about a series that has been read; one that is scored does not wait for the networks."""
        early = self._take(item.volume)
        scores = None if early is None else early.result()
        answer = partial(self._predictor.answer, item.slices, item.intake, item.levels, scores)
        return answer() if scores is not None or item.slices is None else self.run(answer)

    def run(self, work: Callable[[], Result]) -> Result:
        """The result of some work with the networks, done by this thread as soon as nobody else works with them."""
        with self._networks:
            return work()

    def _score(self, streaming: StreamingVolume) -> list[Scores]:
        with self._networks:
            return self._predictor.score(streaming)

    def _take(self, volume: Volume | None) -> Future[list[Scores]] | None:
        """The scores of a volume, if it was begun and nothing failed; those of refused volumes are dropped."""
        with self._changing:
            found = next((future for streaming, future in self._begun if streaming.volume is volume), None)
        # An error is met again, and told, when the whole volume is answered.
        failed = found is not None and found.exception() is not None
        with self._changing:
            self._drop(volume)
        return None if failed else found

    def _drop(self, volume: Volume | None) -> None:
        """Forget a volume, and those that were given up, or their voxels would be held."""
        self._begun = [one for one in self._begun if one[0].volume is not volume and not one[0].abandoned]


def answer_all(
    series: Iterable[CtSeries],
    scorer: EarlyScorer,
    make_extras: MakeExtras | None = None,
    groups: dict[str, str] | None = None,
) -> Iterator[tuple[Answered, int, int]]:
    """Answer about series, one by one.

    Args:
        series: Read as the loop asks for them, by a thread of its own.
        scorer: Who answers.
        make_extras: Makes what goes with an answer before it is given; returns the scores of its maps.
        groups: Patient ID to the group of the patient's studies, where some were answered before; is added to.

    Yields:
        Each answer, and how far the source is read (done, total).

    Raises:
        InputError, OutputError, MissingExtraError: reading or writing failed.
    """
    groups = {} if groups is None else groups
    for item in read_ahead(series, _is_small):
        answer = scorer.answer(item)
        own = item.intake.study_uid or item.key
        # The patient's id itself is kept nowhere.
        group = groups.setdefault(item.intake.patient_id, own) if item.intake.patient_id else own
        pointing = _make(make_extras, item, answer, scorer)
        truth, done, total = item.truth, item.done, item.total
        del item  # or its voxels would be held while the next series is read
        yield Answered(answer, truth, group, pointing), done, total


def _is_small(series: CtSeries) -> bool:
    return series.volume is None or series.volume.hu.size <= AHEAD_VOXELS


def _make(
    make_extras: MakeExtras | None, item: CtSeries, answer: StudyAnswer, scorer: EarlyScorer
) -> dict[str, Any]:
    # A function of its own, so that nothing holds the voxels of the item when it is done.
    return {} if make_extras is None else scorer.run(lambda: make_extras(item, answer))


def read_ahead(items: Iterable[Item], may_go_on: Callable[[Item], bool]) -> Iterator[Item]:
    """Yield items while a thread makes the next one.

    Args:
        items: Made one by one.
        may_go_on: Whether the next may be made while this one is in use; else it waits until the caller asks.

    An error of the maker is raised where its item would have come. When the caller stops, so does the thread.
    """
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(maxsize=1)
    asked, stopped = threading.Semaphore(1), threading.Event()

    def make() -> None:
        iterator = iter(items)
        while True:
            asked.acquire()
            if stopped.is_set():
                return
            try:
                item = next(iterator)
            except StopIteration:
                ready.put((None, None))
                return
            except BaseException as error:
                ready.put((None, error))
                return
            ready.put((item, None))
            del item

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            ahead = may_go_on(item)
            if ahead:
                asked.release()
            yield item
            del item
            if not ahead:
                asked.release()
    finally:
        stopped.set()
        asked.release()
        # The maker may be in the middle of an item; what it puts is never taken.
        thread.join(timeout=0.1)
