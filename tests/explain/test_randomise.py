"""Weights made random from the head on, and what that does to a map."""

from __future__ import annotations

import pytest
import torch

from cspine.explain.maps import list_parts, randomise
from cspine.models.classifier import build_classifier
from cspine.models.header import ModelSpec
from cspine.preprocess import Scale

SCALE = Scale()


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "mobilenetv2_050", "test_vit"])
def test_parts_are_all_tensors_once_in_order(backbone: str) -> None:
    model = build_classifier(ModelSpec(name="m", backbone=backbone), SCALE, seed=1)
    parts = list_parts(model)
    assert [name for names in parts.values() for name in names] == list(model.state_dict())
    assert list(parts)[-1] == "head"
    assert "head.linear.weight" in parts["head"]
    assert len(parts) >= 4


def test_only_the_last_parts_become_random() -> None:
    model = build_classifier(ModelSpec(name="m", backbone="test_resnet"), SCALE, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = list_parts(model)
    for count in (1, 2, None):
        made = randomise(model, SCALE, seed=7, parts=count).state_dict()
        stages = list(parts)
        chosen = stages if count is None else stages[len(stages) - count :]
        for stage, names in parts.items():
            same = all(torch.equal(made[name], before[name]) for name in names)
            assert same == (stage not in chosen)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
