"""Depthwise convolutions leave bf16 while a network is trained on a CPU, and nowhere else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cspine.models.classifier import build_classifier
from cspine.models.depthwise import DepthwiseConv2d, hold_depthwise
from cspine.models.zoo import resolve_spec
from cspine.preprocess import Scale


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1, groups=2))


def test_only_depthwise_convolutions_are_held_and_names_and_weights_stay():
    network = make_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    hold_depthwise(network)
    assert [type(layer) is DepthwiseConv2d for layer in network] == [False, True, False]
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(("training", "kind"), [(True, torch.float32), (False, torch.bfloat16)])
def test_a_held_convolution_leaves_bf16_in_training(training: bool, kind: torch.dtype):
    network = make_network()
    hold_depthwise(network)
    network = copy.deepcopy(network).train(training)
    given = torch.rand(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network[1](network[0](given))
        again = network[2](found)
    assert (found.dtype, again.dtype) == (kind, torch.bfloat16)


def test_without_autocast_a_held_convolution_is_an_ordinary_one():
    plain, held = make_network(), make_network()
    hold_depthwise(held)
    given = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(held(given), plain(given), rtol=0, atol=0)


def test_the_backbone_of_mobilenetv2_has_its_depthwise_convolutions_held():
    model = build_classifier(resolve_spec("mobilenetv2"), Scale(), seed=0)
    assert sum(type(module) is DepthwiseConv2d for module in model.modules()) == 17
