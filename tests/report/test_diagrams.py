"""Diagrams show what the objects hold, whole or not at all, and the same each time."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import cv2
import matplotlib
import pytest

from cspine.core.errors import InputError, OutputError
from cspine.models.header import LayerRow
from cspine.preprocess import Equalise, Recipe, Resize, Scale, Window
from cspine.report.pictures import draw_network, draw_recipe

LAYERS = (
    LayerRow("scale", "ScaleLayer", (3, 64, 64), 0),
    LayerRow("conv1", "Conv2d 7x7 / 2", (64, 32, 32), 9408),
    LayerRow("layer1", "Bottleneck", (256, 16, 16), 215_808, repeats=3),
    LayerRow("linear", "Linear", (2,), 514),
)


def read_texts(path: Path) -> list[str]:
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    return ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_network_shows_every_layer_with_shape_and_parameters(tmp_path: Path) -> None:
    texts = read_texts(draw_network(LAYERS, "resnet", tmp_path / "n.svg"))
    names = [text for text in texts if text in {layer.name for layer in LAYERS}]
    assert names == [layer.name for layer in LAYERS]
    for part in ("resnet", "3 × Bottleneck", "256 × 16 × 16", "215,808", "225,730 parameters"):
        assert part in texts
    assert "softmax over normal, fracture" in texts


def test_a_network_that_ends_in_one_unit_ends_in_a_sigmoid(tmp_path: Path) -> None:
    layers = (*LAYERS[:3], LayerRow("output", "Linear", (1,), 257))
    assert "sigmoid" in read_texts(draw_network(layers, "convnext", tmp_path / "n.svg"))


def test_a_recipe_shows_its_own_steps_in_order(tmp_path: Path) -> None:
    recipe = Recipe(
        steps=(
            Window(center_hu=300, width_hu=1500),
            Equalise(method="clahe"),
            Resize(height_px=96, width_px=128),
        ),
        scale=Scale(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    )
    texts = read_texts(draw_recipe(recipe, tmp_path / "r.svg"))
    known = ("CT slice", "window", "equalise", "resize", "cache", "augment", "scale", "normalise", "network")
    assert tuple(text for text in texts if text in known) == known
    for part in (
        "300/1500 HU",
        "clahe(clip 2, 8x8)",
        "96 × 128",
        "3 × 96 × 128, float32",
        "Hounsfield units",
    ):
        assert part in texts
    assert "mean 0.485/0.456/0.406, std 0.229/0.224/0.225" in texts


def test_a_recipe_without_mean_and_std_shows_no_normalisation(tmp_path: Path) -> None:
    texts = read_texts(draw_recipe(Recipe(), tmp_path / "r.svg"))
    assert "x/255 to 3 channels" in texts
    assert "normalise" not in texts
    assert "8-bit grey" in texts


@pytest.mark.parametrize("name", ["n.svg", "n.png", "n.SVG"])
def test_settings_of_matplotlib_change_no_byte(name: str, tmp_path: Path) -> None:
    first = draw_network(LAYERS, "net", tmp_path / "a" / name).read_bytes()
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": False}):
        assert draw_network(LAYERS, "net", tmp_path / "b" / name).read_bytes() == first
    assert [path.name for path in (tmp_path / "a").iterdir()] == [name]


def test_a_png_is_a_picture(tmp_path: Path) -> None:
    picture = cv2.imread(str(draw_recipe(Recipe(), tmp_path / "r.png")))
    assert picture is not None
    assert min(picture.shape[:2]) > 500


def test_a_title_is_text_and_nothing_else(tmp_path: Path) -> None:
    title = '<b>$x^2$ & "q"'
    assert title in read_texts(draw_network(LAYERS, title, tmp_path / "n.svg"))


def test_another_suffix_or_no_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SVG or a PNG"):
        draw_recipe(Recipe(), tmp_path / "r.pdf")
    with pytest.raises(InputError, match="no layers"):
        draw_network([], "net", tmp_path / "n.svg")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        draw_recipe(Recipe(), tmp_path / "file" / "r.svg")
