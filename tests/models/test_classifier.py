"""The heads are the paper's, the scaling is eq. 1, and a seed alone decides the random weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cspine.core.errors import InputError
from cspine.models.classifier import (
    DenseSigmoidHead,
    FractureClassifier,
    ScaleLayer,
    SoftmaxHead,
    build_classifier,
    create_backbone,
)
from cspine.models.header import ZOO, HeadKind, ModelSpec, find_tag, resolve_spec
from cspine.preprocess import Scale

SPEC = ModelSpec(name="small", backbone="test_resnet")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_softmax_head_gives_the_log_odds_of_the_softmax() -> None:
    head, features = SoftmaxHead(7), 100 * draw(5, 7)
    normal, fracture = torch.softmax(head.class_scores(features), dim=1).unbind(1)
    torch.testing.assert_close(head(features), torch.log(fracture) - torch.log(normal))
    torch.testing.assert_close(torch.sigmoid(head(features)), fracture)


def test_the_softmax_heads_loss_is_the_cross_entropy() -> None:
    head, features = SoftmaxHead(7), draw(6, 7)
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    cross_entropy = F.cross_entropy(head.class_scores(features), labels)
    binary = F.binary_cross_entropy_with_logits(head(features), labels.float())
    torch.testing.assert_close(binary, cross_entropy)
    wanted = torch.autograd.grad(cross_entropy, head.linear.weight)
    torch.testing.assert_close(torch.autograd.grad(binary, head.linear.weight), wanted)


def test_the_dense_head_is_256_relu_units_and_one_sigmoid() -> None:
    head, features = DenseSigmoidHead(7), draw(5, 7)
    hidden = torch.clamp(features @ head.dense.weight.T + head.dense.bias, min=0)
    assert hidden.shape == (5, 256)
    assert (hidden == 0).any()
    logits = head(features)
    assert logits.shape == (5,)
    torch.testing.assert_close(logits, (hidden @ head.output.weight.T + head.output.bias)[:, 0])
    probability = 1 / (1 + torch.exp(-logits))
    torch.testing.assert_close(torch.sigmoid(logits), probability)


@pytest.mark.parametrize("name", ZOO)
def test_each_model_of_the_paper_gives_one_logit_a_slice(name: str) -> None:
    spec = resolve_spec(name)
    model = build_classifier(spec, Scale(), seed=0).eval()
    pixels = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        logits = model(pixels)
        assert torch.equal(model(pixels[:, 0]), logits)
    assert logits.shape == (2,)
    assert torch.isfinite(logits).all()
    assert sum(parameter.numel() for parameter in model.parameters()) == ZOO[name].parameters
    assert isinstance(model.head, DenseSigmoidHead if name == "convnext_tiny" else SoftmaxHead)
    assert find_tag(spec.backbone) == ZOO[name].tag


@pytest.mark.parametrize(
    "backbone", ["test_resnet", "test_convnext", "test_efficientnet", "mobilenetv3_small_050"]
)
@pytest.mark.parametrize("head", HeadKind)
def test_other_backbones_take_either_head(backbone: str, head: HeadKind) -> None:
    model = build_classifier(ModelSpec(name="m", backbone=backbone, head=head), Scale(), seed=0).eval()
    with torch.no_grad():
        assert model(torch.zeros(3, 32, 32, dtype=torch.uint8)).shape == (3,)


def test_the_scale_layer_is_eq_1_then_mean_and_std() -> None:
    scale = Scale(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    wanted = torch.stack(
        [(pixels[0, 0].double() / 255 - mean) / std for mean, std in zip(scale.mean, scale.std, strict=True)]
    )
    scaled = ScaleLayer(scale)(pixels)
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled[0].double(), wanted, rtol=1e-5, atol=1e-5)
    plain = ScaleLayer(Scale())(pixels)
    assert float(plain.min()) == 0
    assert float(plain.max()) == 1


def test_scaling_makes_a_channel_a_mean_and_is_no_weight() -> None:
    model = build_classifier(SPEC, Scale(mean=(0.5,), std=(0.5,)), seed=0)
    assert model.scale(torch.zeros(2, 8, 8)).shape == (2, 1, 8, 8)
    assert model.eval()(torch.zeros(2, 32, 32)).shape == (2,)
    assert not [name for name in model.state_dict() if name.startswith("scale")]


@pytest.mark.parametrize("head", list(HeadKind))
def test_the_head_computes_in_fp32_where_the_backbone_does_not(head: HeadKind) -> None:
    spec = ModelSpec(name="small", backbone="test_resnet", head=head)
    model = build_classifier(spec, Scale(), seed=0).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(255 * torch.rand(64, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def spread_of_flat_slices(model: torch.nn.Module) -> torch.Tensor:
    """How far apart the first normalised features of flat gray slices of three values lie."""
    flat = torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1, 1).expand(3, 3, 32, 32)
    with torch.no_grad():
        features = model.stem(flat).mean(dim=(2, 3))
    return torch.cdist(features, features).max()


def test_a_convnext_from_random_weights_tells_dark_from_bright() -> None:
    spec = ModelSpec(name="small", backbone="convnext_atto")
    backbone = build_classifier(spec, Scale(), seed=0).backbone
    assert spread_of_flat_slices(backbone) > 1
    torch.nn.init.zeros_(backbone.stem[0].bias)  # timm's start: the norm makes all of them the same
    assert spread_of_flat_slices(backbone) < 0.1


def test_a_random_convnext_sees_what_differs_within_a_patch() -> None:
    """The norm after the stem spends its range on the mean of a patch; a centred start leaves more to its texture."""
    mean, std = 0.449, 0.226
    backbone = build_classifier(resolve_spec("convnext_tiny"), Scale(), seed=0).backbone
    convolution = backbone.stem[0]
    flat = torch.full((1, 3, 4, 4), mean)
    with torch.no_grad():
        assert float(convolution.weight.std()) == pytest.approx(0.02 / std, rel=0.1)  # timm's 0.02, over std
        own = convolution.bias + mean * convolution.weight.sum((1, 2, 3))
        assert float(own.abs().max()) <= 1 / math.sqrt(convolution.weight[0].numel())
        assert torch.allclose(convolution(flat).flatten(), own, atol=1e-5)  # mid-gray leaves the bias alone


def test_stems_without_bias_before_a_norm_stay_as_in_timm() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        wanted = create_backbone(ModelSpec(name="small", backbone="test_resnet"), 3).state_dict()
    made = build_classifier(
        ModelSpec(name="small", backbone="test_resnet"), Scale(), seed=3
    ).backbone.state_dict()
    assert all(torch.equal(made[name], value) for name, value in wanted.items())


def same_weights(one: FractureClassifier, other: FractureClassifier) -> bool:
    values = other.state_dict()
    return all(torch.equal(value, values[name]) for name, value in one.state_dict().items())


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = build_classifier(SPEC, Scale(), seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert same_weights(one, build_classifier(SPEC, Scale(), seed=7))
    assert not same_weights(one, build_classifier(SPEC, Scale(), seed=8))


def test_an_unknown_architecture_is_refused_with_close_names() -> None:
    with pytest.raises(InputError, match="no architecture 'resnet_of_mine'") as caught:
        build_classifier(resolve_spec("resnet_of_mine"), Scale(), seed=0)
    assert caught.value.where == "models.resnet_of_mine.backbone"
    assert "resnet" in str(caught.value.fix)
    with pytest.raises(InputError, match="no architecture"):
        create_backbone(ModelSpec(name="m", backbone="zzz"), 3)


def test_a_tag_is_not_an_architecture() -> None:
    with pytest.raises(InputError, match="weights as well"):
        resolve_spec("r", "resnet50.a1_in1k")


@pytest.mark.parametrize(
    "options",
    [
        {"no_such_option": 1},
        {"drop_path_rate": "much"},
        {"act_layer": "nonsense"},
        {"output_stride": 5},
        {"features_only": True},
    ],
)
def test_backbone_options_that_timm_refuses_are_named(options: dict[str, bool | int | float | str]) -> None:
    with pytest.raises(InputError, match=r"timm cannot build test_resnet: \S") as caught:
        create_backbone(SPEC.model_copy(update={"backbone_options": options}), 3)
    assert caught.value.where == "models.small.backbone_options"


def test_backbone_options_reach_timm() -> None:
    spec = ModelSpec(name="m", backbone="test_resnet", backbone_options={"drop_rate": 0.25})
    assert create_backbone(spec, 3).drop_rate == 0.25
