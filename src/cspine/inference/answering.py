"""Answering about any number of series: one is read while the last is being answered, and each is kept at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from cspine.inference.study import StudyPredictor
from cspine.studies.answer import StudyAnswer
from cspine.studies.answers_folder import Answered, AnswersFolder
from cspine.studies.series import SeriesToAnswer

AHEAD_VOXELS = 120_000_000
"""A series is read ahead of the answer to the one before only where that one has at most so many voxels (0.24 GB)."""

Item = TypeVar("Item")
MakeExtras = Callable[[SeriesToAnswer, StudyAnswer], dict[str, Any]]


def answer_all(
    series: Iterable[SeriesToAnswer],
    predictor: StudyPredictor,
    folder: AnswersFolder,
    on_answer: Callable[[SeriesToAnswer, StudyAnswer], None],
    make_extras: MakeExtras | None = None,
    groups: dict[str, str] | None = None,
) -> None:
    """Answer about series and keep the answers in a folder.

    Args:
        series: Read as the loop asks for them, by a thread of its own.
        predictor: Who answers.
        folder: Where each answer is kept as soon as it is there.
        on_answer: Called with every series and its answer.
        make_extras: Called before the answer is kept: makes what goes with it, returns the scores of its maps.
        groups: Patient ID to the group of the patient's studies, where some were answered before; is added to.

    Raises:
        InputError, OutputError, MissingExtraError: reading or writing failed.
    """
    groups = {} if groups is None else groups
    for item in read_ahead(series, lambda one: one.voxels <= AHEAD_VOXELS):
        answer = predictor.answer(item.slices, item.intake, item.levels)
        own = item.intake.study_uid or item.key
        # The patient's id itself is kept nowhere.
        group = groups.setdefault(item.intake.patient_id, own) if item.intake.patient_id else own
        pointing = {} if make_extras is None else make_extras(item, answer)
        folder.add(Answered(answer, item.truth, group, pointing))
        on_answer(item, answer)
        del item  # or its voxels would be held while the next series is read


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
