"""How many series are in memory while studies are answered, and how they are scored while they are read."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Timer, current_thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cspine.ct import series as ct_series
from cspine.ct.intake import IntakePolicy
from cspine.ct.nifti import read_nifti, write_nifti
from cspine.ct.series import read_series
from cspine.ct.volume import CANONICAL_DIRECTION, AbandonedError, StreamingVolume, Volume, grid_origins
from cspine.inference import study as answering


def test_a_large_series_is_let_go_before_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    normal = CANONICAL_DIRECTION[0]
    hu = np.full((60, 8, 8), -1000, np.int16)
    hu[:, 4:] = 40
    for name in "abc":
        volume = Volume(
            hu, (2.0, 1.0, 1.0), CANONICAL_DIRECTION, grid_origins((0.0, 0.0, 0.0), normal, 2.0, 60)
        )
        write_nifti(tmp_path / f"{name}.nii", volume)
    read = read_nifti
    known: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def read_counted(path: Path) -> Volume:
        gc.collect()
        alive.append(sum(one() is not None for one in known))
        found = read(path)
        known.append(weakref.ref(found.hu))
        return found

    monkeypatch.setattr(ct_series, "read_nifti", read_counted)
    monkeypatch.setattr(answering, "AHEAD_VOXELS", 0)
    predictor: Any = SimpleNamespace(answer=lambda slices, intake, levels, scores: None)
    series = read_series(tmp_path, "nifti", IntakePolicy())
    with answering.EarlyScorer(predictor) as scorer:
        for _ in answering.answer_all(series, scorer):
            pass
    assert alive == [0, 0, 0]


def make_volume(slices: int = 4) -> Volume:
    hu = np.arange(slices, dtype=np.int16)[:, None, None] * np.ones((1, 3, 3), np.int16)
    normal = CANONICAL_DIRECTION[0]
    origins = grid_origins((0.0, 0.0, 0.0), normal, 1.0, slices)
    return Volume(hu, (1.0, 1.0, 1.0), CANONICAL_DIRECTION, origins, series_uid="1.2")


def test_a_slice_comes_when_it_and_its_neighbours_are_there() -> None:
    streaming = StreamingVolume(make_volume())
    with ThreadPoolExecutor(1) as pool:
        streaming.advance(2)
        assert streaming.slice(1, ()).pixels[0, 0] == 1
        waiting = pool.submit(streaming.slice, 1, (-1.0, 0.0, 1.0))
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.05)
        streaming.advance(3)
        assert [pixels[0, 0] for pixels in waiting.result(timeout=5).around] == [0, 1, 2]


def test_who_waits_for_a_slice_of_an_abandoned_volume_is_told() -> None:
    streaming = StreamingVolume(make_volume())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(streaming.slice, 3, ())
        streaming.abandon()
        with pytest.raises(AbandonedError):
            waiting.result(timeout=5)


class CountingPredictor:
    """Scores a series by what is in its slices; remembers who was scored, and what was answered with which scores."""

    def __init__(self) -> None:
        self.scored: list[int] = []
        self.answered: list[Any] = []

    def score(self, slices: Any) -> list[Any]:
        self.scored.append(len(slices.slice_ids))
        return [[int(slices.slice(index, ()).pixels[0, 0]) for index in range(len(slices.slice_ids))]]

    def answer(self, slices: Any, intake: Any, levels: Any, scores: Any) -> Any:
        self.answered.append(scores)


def make_item(volume: Volume | None) -> Any:
    return SimpleNamespace(volume=volume, slices=None, intake=None, levels=())


def test_a_series_is_scored_while_it_is_read_and_not_again() -> None:
    predictor: Any = CountingPredictor()
    streaming = StreamingVolume(make_volume(3))
    with answering.EarlyScorer(predictor) as scorer:
        scorer.begin(streaming)
        streaming.advance(3)
        scorer.answer(make_item(streaming.volume))
        scorer.answer(make_item(make_volume(3)))
    assert predictor.answered == [[[0, 1, 2]], None]
    assert predictor.scored == [3]


def test_what_intake_refused_has_no_scores_and_holds_nobody_up() -> None:
    predictor: Any = CountingPredictor()
    refused, taken = StreamingVolume(make_volume(4)), StreamingVolume(make_volume(2))
    with answering.EarlyScorer(predictor) as scorer:
        scorer.begin(refused)
        refused.advance(2)
        refused.abandon()
        scorer.begin(taken)
        reading = Timer(0.02, taken.advance, (2,))  # as another thread does
        reading.start()
        scorer.answer(make_item(None))
        scorer.answer(make_item(taken.volume))
        assert scorer._begun == []
    assert predictor.answered == [None, [[0, 1]]]


def test_leaving_gives_up_what_is_not_read_to_its_end() -> None:
    predictor: Any = CountingPredictor()
    with answering.EarlyScorer(predictor) as scorer:
        scorer.begin(StreamingVolume(make_volume(4)))
    assert predictor.answered == []


def test_a_scored_series_is_answered_while_the_next_is_read() -> None:
    predictor: Any = CountingPredictor()
    first, second = StreamingVolume(make_volume(2)), StreamingVolume(make_volume(3))
    with ThreadPoolExecutor(1) as pool, answering.EarlyScorer(predictor) as scorer:
        scorer.begin(first)
        first.advance(2)
        scorer.begin(second)
        pool.submit(scorer.answer, make_item(first.volume)).result(timeout=5)
        assert predictor.answered == [[[0, 1]]]


def test_other_work_with_the_networks_waits_for_the_scores() -> None:
    predictor: Any = CountingPredictor()
    streaming, scoring = StreamingVolume(make_volume(2)), Event()
    score = predictor.score
    predictor.score = lambda slices: [scoring.set(), score(slices)][1]
    with ThreadPoolExecutor(1) as pool, answering.EarlyScorer(predictor) as scorer:
        assert scorer.run(current_thread) is current_thread()
        scorer.begin(streaming)
        scoring.wait(timeout=5)
        work = pool.submit(scorer.run, lambda: list(predictor.scored))
        with pytest.raises(TimeoutError):
            work.result(timeout=0.05)
        streaming.advance(2)
        assert work.result(timeout=5) == [2]


def test_after_leaving_no_series_is_taken_or_held() -> None:
    predictor: Any = CountingPredictor()
    refused, next_one, late = (StreamingVolume(make_volume(2)) for _ in range(3))
    with answering.EarlyScorer(predictor) as scorer:
        scorer.begin(refused)
        refused.abandon()
        scorer.begin(next_one)
        assert [streaming for streaming, _ in scorer._begun] == [next_one]
    scorer.begin(late)
    assert late.abandoned
