"""What is said of a network is read off the network: the constants of the zoo equal the real ones."""

from __future__ import annotations

import pytest
import torch

from cspine.models.classifier import FractureClassifier, build_classifier, count_flops, list_layers
from cspine.models.header import DENSE_UNITS, ZOO, LayerRow, resolve_spec
from cspine.preprocess import Scale

SIZE_PX = (224, 224)


@pytest.fixture(scope="module", params=list(ZOO))
def named(request: pytest.FixtureRequest) -> tuple[str, FractureClassifier]:
    return request.param, build_classifier(resolve_spec(request.param), Scale(), seed=0)


@pytest.fixture(scope="module")
def mobilenet() -> FractureClassifier:
    return build_classifier(resolve_spec("mobilenetv2"), Scale(), seed=0)


def test_the_zoo_states_the_real_parameters_and_flops(named: tuple[str, FractureClassifier]) -> None:
    name, model = named
    assert sum(parameter.numel() for parameter in model.parameters()) == ZOO[name].parameters
    assert count_flops(model, SIZE_PX) == ZOO[name].flops


def test_layers_hold_every_parameter_once_and_end_in_the_head(named: tuple[str, FractureClassifier]) -> None:
    name, model = named
    layers = list_layers(model, (64, 64))
    assert sum(layer.parameters for layer in layers) == ZOO[name].parameters
    assert len({layer.name for layer in layers}) == len(layers)
    assert layers[0] == LayerRow("scale", "ScaleLayer", (3, 64, 64), 0)
    if name == "convnext_tiny":
        assert layers[-2:] == [
            LayerRow("dense", "Linear + ReLU", (DENSE_UNITS,), 768 * 256 + 256),
            LayerRow("output", "Linear", (1,), 257),
        ]
    else:
        assert layers[-1].name == "linear"
        assert layers[-1].output_shape == (2,)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("mobilenetv2", {f"blocks.{n}": count for n, count in enumerate((1, 2, 3, 4, 3, 3, 1))}),
        ("resnet50", {f"layer{n}": count for n, count in enumerate((3, 4, 6, 3), start=1)}),
        ("convnext_tiny", {f"stages.{n}": count for n, count in enumerate((3, 3, 9, 3))}),
    ],
)
def test_stages_say_how_often_their_block_repeats(name: str, stages: dict[str, int]) -> None:
    layers = list_layers(build_classifier(resolve_spec(name), Scale(), seed=0), (64, 64))
    assert {layer.name: layer.repeats for layer in layers if layer.name in stages} == stages


def test_shapes_follow_the_size_of_the_slice(mobilenet: FractureClassifier) -> None:
    shapes = {layer.name: layer.output_shape for layer in list_layers(mobilenet, (64, 96))}
    assert shapes["conv_stem"] == (32, 32, 48)
    assert shapes["blocks.6"] == (320, 2, 3)
    assert shapes["global_pool"] == (1280,)


def test_looking_leaves_the_network_as_it_was(mobilenet: FractureClassifier) -> None:
    mobilenet.train()
    before = {name: value.clone() for name, value in mobilenet.state_dict().items()}
    list_layers(mobilenet, (32, 32))
    count_flops(mobilenet, (32, 32))
    assert mobilenet.training
    assert all(torch.equal(value, before[name]) for name, value in mobilenet.state_dict().items())
    assert not any(module._forward_hooks for module in mobilenet.modules())
