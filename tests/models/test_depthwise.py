"""Depthwise convolutions leave bf16 and learn wide kernels in parts while they are trained on a CPU; nowhere else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given as draw
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

from cspine.models.classifier import DepthwiseConv2d, build_classifier, hold_depthwise
from cspine.models.header import resolve_spec
from cspine.preprocess import Scale


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1, groups=2))


def test_only_depthwise_convolutions_are_held():
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


def test_without_autocast_three_columns_are_an_ordinary_one():
    plain, held = make_network(), make_network()
    hold_depthwise(held)
    given = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(held(given), plain(given), rtol=0, atol=0)


def test_mobilenetv2_has_its_depthwise_convolutions_held():
    model = build_classifier(resolve_spec("mobilenetv2"), Scale(), seed=0)
    assert sum(type(module) is DepthwiseConv2d for module in model.modules()) == 17


@settings(max_examples=40, deadline=None)
@draw(
    rows=st.sampled_from([1, 3, 5, 7]),
    columns=st.sampled_from([3, 5, 7, 9, 11, 13]),
    size_px=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    channels=st.integers(2, 20),
    count=st.integers(1, 3),
    bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_a_wide_kernel_in_parts_has_the_gradients_of_pytorch(
    rows: int,
    columns: int,
    size_px: tuple[int, int],
    channels: int,
    count: int,
    bias: bool,
    channels_last: bool,
):
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    padding = (rows // 2, columns // 2)
    plain = nn.Conv2d(channels, channels, (rows, columns), padding=padding, groups=channels, bias=bias)
    held = copy.deepcopy(plain)
    hold_depthwise(held)
    given = torch.randn(count, channels, *size_px).to(memory_format=layout)
    back = torch.randn_like(given)
    answers = []
    for network in (plain, held):
        source = given.clone(memory_format=torch.preserve_format).requires_grad_()
        found = network(source)
        found.backward(back)
        answers.append([found, source.grad, *(value.grad for value in network.parameters())])
    for ours, wanted in zip(answers[1], answers[0], strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 7, "padding": 3},
        {"kernel_size": 7, "padding": 3, "out_channels": 8},
        {"kernel_size": (1, 7), "padding": (0, 3)},
        {"kernel_size": 7, "padding": 3, "stride": 2},
        {"kernel_size": 7, "padding": 6, "dilation": 2},
        {"kernel_size": 6, "padding": 3},
        {"kernel_size": 7, "padding": 1},
        {"kernel_size": 7, "padding": "same"},
        {"kernel_size": 7, "padding": 3, "padding_mode": "reflect"},
    ],
)
def test_any_depthwise_convolution_has_the_gradients_of_pytorch(
    options: dict[str, Any],
):
    torch.manual_seed(0)
    plain = nn.Conv2d(**{"in_channels": 4, "out_channels": 4, "groups": 4, **options})
    held = copy.deepcopy(plain)
    hold_depthwise(held)
    given = torch.randn(2, 4, 14, 14)
    for network in (plain, held):
        network(given).square().sum().backward()
    torch.testing.assert_close(held.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-3)


def make_wide(**options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    held = nn.Conv2d(4, 4, 7, padding=3, groups=4, **options)
    hold_depthwise(held)
    return held


@pytest.mark.parametrize(("frozen", "count"), [("", 4), ("weight", 1), ("input", 3)])
def test_gradients_that_nobody_asks_for_are_not_computed(frozen: str, count: int):
    """One call for the input, three for the parts of the weights."""
    held = make_wide()
    held.weight.requires_grad_(frozen != "weight")
    given = torch.randn(2, 4, 14, 14, requires_grad=frozen != "input")
    answer = held(given).sum()
    with torch.profiler.profile() as seen:
        answer.backward()
    assert [event.name for event in seen.events()].count("aten::convolution_backward") == count


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
def test_a_wide_convolution_works_with_the_tools_of_pytorch():
    """Second derivatives, gradients a slice, one picture without a batch, tracing."""
    held = make_wide(bias=False)
    plain = nn.Conv2d(4, 4, 7, padding=3, groups=4, bias=False)
    plain.load_state_dict(held.state_dict())
    given = torch.randn(3, 4, 9, 9)
    found = []
    for network in (held, plain):
        (first,) = torch.autograd.grad(network(given).square().sum(), network.weight, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), network.weight)

        def find_loss(weights: dict[str, torch.Tensor], one: torch.Tensor, network: nn.Module = network):
            return torch.func.functional_call(network, weights, one[None]).square().sum()

        weights = dict(network.named_parameters())
        each = torch.func.vmap(torch.func.grad(find_loss), in_dims=(None, 0))(weights, given)
        network.zero_grad()
        network(given[0]).sum().backward()
        found.append([second, each["weight"], network.weight.grad])
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-3)
    assert "_WideConv2d" not in str(torch.jit.trace(held, given).inlined_graph)
    assert "_WideConv2d" not in str(torch.export.export(held, (given,)).graph)


def test_convnext_tiny_learns_its_wide_kernels_in_parts():
    """In all of its 18 blocks, down to a last picture of 7x7."""
    model = build_classifier(resolve_spec("convnext_tiny"), Scale(), seed=0).train()
    with torch.profiler.profile(record_shapes=True) as seen:
        model(torch.rand(1, 1, 224, 224)).sum().backward()
    names = [event.name for event in seen.events()]
    assert names.count("_WideConv2d") == 18
