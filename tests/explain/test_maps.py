"""Maps of positive evidence: against a gradient taken by hand, and of networks that read one place only."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from cspine.core.errors import InputError, MissingExtraError
from cspine.core.types import Slice
from cspine.explain.maps import Explainer, find_spatial_layer
from cspine.models.classifier import FractureClassifier, build_classifier
from cspine.models.header import ZOO, HeadKind, ModelSpec, resolve_spec
from cspine.preprocess import CropBody, Equalise, Neighbours, Recipe, Resize, Scale, Window, Windows

NONE = Equalise(method="none")


def make_recipe(size_px: int, *first: Any, channels: int = 3) -> Recipe:
    scale = Scale(mean=(0.0,) * channels, std=(1.0,) * channels)
    return Recipe(steps=(*first, NONE, Resize(height_px=size_px, width_px=size_px)), scale=scale)


def make_model(recipe: Recipe, backbone: str = "test_resnet", head: HeadKind = HeadKind.SOFTMAX) -> Any:
    return build_classifier(ModelSpec(name="m", backbone=backbone, head=head), recipe.scale, seed=3).eval()


def draw_pixels(recipe: Recipe, count: int = 2) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, *recipe.shape), dtype=np.uint8)


class ReadsOnePatch(nn.Module):
    """A classifier whose logit is the detail (the spread) of the pixels in one square, and nothing else."""

    def __init__(self, top: int, left: int, side: int) -> None:
        super().__init__()
        self.spec = ModelSpec(name="patch", backbone="test_resnet")
        self.square = (..., slice(top, top + side), slice(left, left + side))
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels[self.square].std(dim=(1, 2, 3))


@pytest.mark.parametrize("channels", [1, 3])
def test_occlusion_points_at_the_one_patch_that_a_network_reads(channels: int) -> None:
    recipe = make_recipe(48) if channels == 1 else make_recipe(48, Windows(), channels=3)
    model: Any = ReadsOnePatch(24, 8, 8)
    maps = Explainer(model, recipe, "occlusion").explain_pixels(draw_pixels(recipe))
    assert maps.dtype == np.float32
    assert maps.min() == 0
    for heat in maps:
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        assert 24 <= row < 32
        assert 8 <= column < 16
        # A patch is 8 pixels wide and reaches 2 more by the smoothing: nothing farther can have moved the logit.
        far = heat.copy()
        far[14:42, 0:26] = 0
        assert far.max() == 0


def test_occlusion_of_a_slice_costs_a_bounded_number_of_passes() -> None:
    recipe, passes = make_recipe(96), []

    class Counts(ReadsOnePatch):
        def forward(self, pixels: Tensor) -> Tensor:
            passes.append(len(pixels))
            return super().forward(pixels)

    model: Any = Counts(24, 8, 8)
    Explainer(model, recipe, "occlusion").explain_pixels(draw_pixels(recipe, 1))
    assert sum(passes) == 1 + 11 * 11
    assert max(passes) == 32


class Toy(FractureClassifier):
    """Two convolutions and a linear head, whose Grad-CAM can be written down."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        torch.manual_seed(0)
        self.spec = ModelSpec(name="toy", backbone="toy")
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 2, stride=2))
        self.weights = nn.Linear(6, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels
        found = self.backbone(pixels.float() / 255)
        return self.weights(torch.tanh(found).mean(dim=(2, 3)))[:, 0]


def test_gradcam_is_what_its_equations_say() -> None:
    recipe, model = make_recipe(16), Toy().eval()
    pixels = draw_pixels(recipe, 3)
    explainer = Explainer(model, recipe, "gradcam")
    assert explainer.layer is not None
    assert (explainer.layer.name, explainer.layer.size) == ("2", (8, 8))
    maps = explainer.explain_pixels(pixels)  # its positive part
    found = model.backbone(torch.from_numpy(pixels).unsqueeze(1).float() / 255).detach()
    # d logit / d A = w (1 - tanh(A)^2) / cells; its mean over the cells weights the channel (Selvaraju, eq. 1).
    slope = model.weights.weight.detach()[0][None, :, None, None] * (1 - torch.tanh(found) ** 2) / 64
    by_hand = (slope.mean(dim=(2, 3), keepdim=True) * found).sum(1).numpy()
    smooth = np.stack([blur_by_hand(one) for one in by_hand])[:, 1:-1, 1:-1]
    signed = explainer.explain_signed(pixels)
    cells = signed.reshape(3, 8, 2, 8, 2).mean(axis=(2, 4))[:, 1:-1, 1:-1]
    assert np.ptp(smooth) > 1e-4
    assert cells == pytest.approx(smooth, abs=2e-6)
    assert np.array_equal(maps, np.maximum(signed, 0))


def blur_by_hand(cells: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The mean of a cell's four pixels, each a quarter of the way to its neighbours: (1 6 1) / 8 along each axis."""
    for axis in (0, 1):
        cells = (np.roll(cells, 1, axis) + 6 * cells + np.roll(cells, -1, axis)) / 8
    return cells


RECIPES = {
    "one channel": make_recipe(64),
    "three windows": make_recipe(64, Windows(), channels=3),
    "2.5-D": make_recipe(64, Neighbours(count=3), Window(), channels=3),
    "2.5-D in two windows": make_recipe(
        64, Neighbours(count=3), Windows(windows=(Window(), Window(center_hu=50, width_hu=400))), channels=6
    ),
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("head", list(HeadKind))
def test_every_recipe_and_head_has_maps_of_its_grid(name: str, head: HeadKind) -> None:
    recipe = RECIPES[name]
    explainer = Explainer(make_model(recipe, head=head), recipe)
    maps = explainer.explain_pixels(draw_pixels(recipe))
    assert maps.shape == (2, 64, 64)
    assert maps.min() >= 0
    signed = explainer.explain_signed(draw_pixels(recipe))
    assert np.array_equal(np.maximum(signed, 0), maps)
    assert np.ptp(signed) > 0


@pytest.mark.parametrize(
    ("name", "last", "first_px"),
    [("mobilenetv2", "bn2", 0.0), ("resnet50", "layer4", 0.0), ("convnext_tiny", "norm_pre", 15.5)],
)
def test_the_last_layer_is_found_and_where_its_cells_lie(name: str, last: str, first_px: float) -> None:
    assert name in ZOO
    recipe = make_recipe(96)
    model = build_classifier(resolve_spec(name), recipe.scale, seed=0).eval()
    layer = find_spatial_layer(model, recipe.shape, 1)
    assert (layer.name, layer.size) == (last, (3, 3))
    # ResNet and MobileNet pad their strided convolutions, so their cells lie on pixels 0, 32, ...; ConvNeXt does not.
    assert (layer.start_px, layer.step_px) == (first_px, 32.0)
    assert find_spatial_layer(model, recipe.shape).size == (12, 12)


@pytest.mark.parametrize("backbone", ["test_resnet", "resnet18", "test_convnext", "mobilenetv2_050"])
def test_a_cell_is_where_the_network_looks_from_it(backbone: str) -> None:
    recipe = make_recipe(160)
    model = make_model(recipe, backbone)
    layer = find_spatial_layer(model, recipe.shape)
    seen: list[Tensor] = []
    handle = layer.module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    pixels = torch.from_numpy(draw_pixels(recipe, 1)).float().unsqueeze(1).requires_grad_()
    model(pixels)
    handle.remove()
    cell = layer.size[0] // 2
    (slope,) = torch.autograd.grad((seen[0][0, :, cell, cell] ** 2).sum(), pixels)
    weight = (slope[0, 0] ** 2).numpy()
    middle = (weight.sum(axis=1) * np.arange(160)).sum() / weight.sum()
    expected = layer.start_px + cell * layer.step_px
    assert middle == pytest.approx(expected, abs=layer.step_px / 4)


def test_a_map_comes_back_to_the_grid_of_its_slice() -> None:
    recipe = make_recipe(48, CropBody(field_of_view_mm=48), Window())
    hu = np.full((80, 100), -1000, np.int16)
    hu[20:60, 30:70] = np.random.default_rng(0).integers(0, 900, (40, 40))
    item = Slice(hu, "hu", "s", spacing_mm=(1.0, 1.0))
    model: Any = ReadsOnePatch(24, 8, 8)
    heat = Explainer(model, recipe, "occlusion").explain_slices([item])[0]
    assert heat.shape == (80, 100)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    # The crop begins at row 16 and column 26: where the patch is in it, 24 and 8 pixels on.
    assert 40 <= row < 48
    assert 34 <= column < 42


def test_a_transformer_is_refused_with_the_way_out() -> None:
    recipe = make_recipe(160)
    model = make_model(recipe, "test_vit")
    with pytest.raises(InputError, match="no layer whose output is a picture") as caught:
        Explainer(model, recipe, "gradcam")
    assert caught.value.fix is not None
    assert "occlusion" in caught.value.fix


def test_without_captum_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    model: Any = ReadsOnePatch(0, 0, 8)
    with pytest.raises(MissingExtraError) as caught:
        Explainer(model, make_recipe(48), "occlusion")
    assert caught.value.fix == "pip install 'cspine[studies]'"


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="no such method"):
        Explainer(make_model(make_recipe(48)), make_recipe(48), "saliency")  # type: ignore[arg-type]
