"""Answering about any number of series: scored while they are read, one ahead of the other, and each kept at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from cspine.inference.study import Scores, StudyPredictor
from cspine.studies.answer import StudyAnswer
from cspine.studies.answers_folder import Answered, AnswersFolder
from cspine.studies.growing import GrowingVolume
from cspine.studies.series import SeriesToAnswer
from cspine.studies.volume import Volume

AHEAD_VOXELS = 120_000_000
"""A series is read ahead of the answer to the one before only where that one has at most so many voxels (0.24 GB)."""

Item = TypeVar("Item")
Result = TypeVar("Result")
MakeExtras = Callable[[SeriesToAnswer, StudyAnswer], dict[str, Any]]


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
        self._begun: list[tuple[GrowingVolume, Future[list[Scores]]]] = []
        self._left = False

    def __enter__(self) -> EarlyScorer:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changing:
            self._left = True
            for growing, _future in self._begun:
                growing.abandon()
        self._pool.shutdown(cancel_futures=True)

    def begin(self, growing: GrowingVolume) -> None:
        """A series is about to be read; may be called by another thread than that which asks for answers."""
        with self._changing:
            if self._left:
                growing.abandon()
                return
            self._drop(None)
            self._begun.append((growing, self._pool.submit(self._score, growing)))

    def answer(self, item: SeriesToAnswer) -> StudyAnswer:
        """The answer about a series that has been read; one that is scored does not wait for the networks."""
        early = self._take(item.volume)
        scores = None if early is None else early.result()
        answer = partial(self._predictor.answer, item.slices, item.intake, item.levels, scores)
        return answer() if scores is not None or item.slices is None else self.run(answer)

    def run(self, work: Callable[[], Result]) -> Result:
        """The result of some work with the networks, done by this thread as soon as nobody else works with them."""
        with self._networks:
            return work()

    def _score(self, growing: GrowingVolume) -> list[Scores]:
        with self._networks:
            return self._predictor.score(growing)

    def _take(self, volume: Volume | None) -> Future[list[Scores]] | None:
        """The scores of a volume, if it was begun and nothing failed; those of refused volumes are dropped."""
        with self._changing:
            found = next((future for growing, future in self._begun if growing.volume is volume), None)
        # An error is met again, and told, when the whole volume is answered.
        failed = found is not None and found.exception() is not None
        with self._changing:
            self._drop(volume)
        return None if failed else found

    def _drop(self, volume: Volume | None) -> None:
        """Forget a volume, and those that were given up, or their voxels would be held."""
        self._begun = [one for one in self._begun if one[0].volume is not volume and not one[0].abandoned]


def answer_all(
    series: Iterable[SeriesToAnswer],
    scorer: EarlyScorer,
    folder: AnswersFolder,
    on_answer: Callable[[SeriesToAnswer, StudyAnswer], None],
    make_extras: MakeExtras | None = None,
    groups: dict[str, str] | None = None,
) -> None:
    """Answer about series and keep the answers in a folder.

    Args:
        series: Read as the loop asks for them, by a thread of its own.
        scorer: Who answers.
        folder: Where each answer is kept as soon as it is there.
        on_answer: Called with every series and its answer.
        make_extras: Called before the answer is kept: makes what goes with it, returns the scores of its maps.
        groups: Patient ID to the group of the patient's studies, where some were answered before; is added to.

    Raises:
        InputError, OutputError, MissingExtraError: reading or writing failed.
    """
    groups = {} if groups is None else groups
    for item in read_ahead(series, lambda one: one.voxels <= AHEAD_VOXELS):
        answer = scorer.answer(item)
        own = item.intake.study_uid or item.key
        # The patient's id itself is kept nowhere.
        group = groups.setdefault(item.intake.patient_id, own) if item.intake.patient_id else own
        pointing = _make(make_extras, item, answer, scorer)
        folder.add(Answered(answer, item.truth, group, pointing))
        on_answer(item, answer)
        del item  # or its voxels would be held while the next series is read


def _make(
    make_extras: MakeExtras | None, item: SeriesToAnswer, answer: StudyAnswer, scorer: EarlyScorer
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
