"""Maps of positive evidence: which parts of a slice speak for a fracture. Both methods are captum's.

gradcam    Grad-CAM (Selvaraju et al. 2017, ICCV): the channels of a late layer, weighted by how the logit of `fracture`
           changes with each; what is left below 0 speaks against and is cut. One pass and its gradient a slice. Its
           unit has no meaning. timm says where stages end (`feature_info`); one pass of an empty picture shows the
           sizes, strides and paddings on the way.
occlusion  Each patch of a grid is replaced by a blurred copy of the slice (Zeiler and Fergus 2014, ECCV, with the fill
           of Fong and Vedaldi 2017, ICCV: a hole would be an edge of its own), and the fall of the logit is noted where
           the patch was. About `OCCLUSION_GRID` squared passes a slice. Its unit is log-odds.

A map is (H, W) float32, never below 0, on the grid of the recipe's result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cspine.core.errors import InputError, MissingExtraError
from cspine.core.types import Slice
from cspine.models.classifier import FractureClassifier, build_classifier
from cspine.preprocess import Recipe, Scale, sample_grid

FEWEST_CELLS = 7
"""Cells along the shorter side: what the last stage has at 224 pixels. Of smaller pictures an earlier stage is read."""


@dataclass(frozen=True)
class SpatialLayer:
    """A layer whose output is still a picture.

    Attributes:
        name: In the network.
        module: The layer itself.
        size: (rows, columns) of its output.
        start_px, step_px: Pixel of the network's input over which the first cell is centred, and pixels from one cell
            to the next, along rows and columns alike: what strides and paddings come to. The plain way, to stretch the
            map over the picture, is off by half a cell for networks that pad their strided convolutions (ResNet,
            MobileNet), and right for those that do not (ConvNeXt).
    """

    name: str
    module: nn.Module
    size: tuple[int, int]
    start_px: float
    step_px: float


def find_spatial_layer(
    model: FractureClassifier, shape: tuple[int, ...], fewest_cells: int = FEWEST_CELLS
) -> SpatialLayer:
    """The last layer whose output has at least `fewest_cells` a side; the finest stage's where none has.

    Args:
        model: Any classifier of this project.
        shape: Of the recipe's result: (height, width) or (channels, height, width).
        fewest_cells: 1 takes the last one, whatever the size of the picture.

    Raises:
        InputError: the backbone has no layers of that kind, as a transformer.
    """
    stages = _list_stages(model.backbone)
    seen, strides = _trace(model, shape, stages)
    if not seen:
        raise InputError(
            f"{model.spec.backbone} has no layer whose output is a picture, which Grad-CAM reads",
            where=f"model {model.spec.name}",
            fix="take the method occlusion",
        )
    wide = [name for name, size in seen.items() if min(size) >= fewest_cells]
    name = wide[-1] if wide else max(seen, key=lambda each: min(seen[each]))
    start_px, step_px = _find_centres(strides, seen[name][0])
    return SpatialLayer(name, stages[name], seen[name], start_px, step_px)


def _list_stages(backbone: nn.Module) -> dict[str, nn.Module]:
    """Where timm says that a stage ends, and the whole of what comes before the pooling: the top modules."""
    modules = dict(backbone.named_modules())
    names = [str(stage["module"]) for stage in getattr(backbone, "feature_info", ()) if "module" in stage]
    names += [name for name, _ in backbone.named_children()]
    return {name: modules[name] for name in dict.fromkeys(names) if name in modules}


_Strides = list[tuple[int, float, int, int]]  # rows in, pixels that the middle moves, stride, rows out


def _trace(
    model: FractureClassifier, shape: tuple[int, ...], stages: dict[str, nn.Module]
) -> tuple[dict[str, tuple[int, int]], _Strides]:
    """Sizes of the stages' outputs, in the order in which they end, and all layers with strides or without padding."""
    seen: dict[str, tuple[int, int]] = {}
    strides: _Strides = []
    handles = []

    def note_stage(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            # (N, channels, rows, columns) with more than one cell; what is pooled is no picture.
            if output.ndim == 4 and min(output.shape[2:]) > 1:
                seen.pop(name, None)
                seen[name] = (output.shape[2], output.shape[3])
            if output.ndim == 3:
                seen.clear()  # tokens: what a transformer cut into patches is no picture any more

        return hook

    def note_stride(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kernel, stride, padding = (_first(getattr(module, key)) for key in _GEOMETRY)
        strides.append((inputs[0].shape[2], (kernel - 1) / 2 - padding, stride, output.shape[2]))

    for name, module in stages.items():
        handles.append(module.register_forward_hook(note_stage(name)))
    for module in model.backbone.modules():
        if all(hasattr(module, key) for key in _GEOMETRY):
            handles.append(module.register_forward_hook(note_stride))
    try:
        with torch.inference_mode():
            device = next(model.parameters()).device
            model(torch.zeros((1, *shape), dtype=torch.uint8, device=device))
    finally:
        for handle in handles:
            handle.remove()
    if not str(getattr(model.backbone, "output_fmt", "NCHW")).endswith("NCHW"):
        seen.clear()
    return seen, strides


_GEOMETRY = ("kernel_size", "stride", "padding")


def _first(value: Any) -> int:
    """Of a size along rows and columns that of the rows. "same" is written as no number: then no padding before."""
    if isinstance(value, str):
        return 0
    return int(value[0] if isinstance(value, tuple) else value)


def _find_centres(strides: _Strides, rows: int) -> tuple[float, float]:
    """Start and step of the cells of a layer of so many rows, from each change of size in turn."""
    start_px, step_px = 0.0, 1.0
    size = strides[0][0]
    while size != rows:
        changes = [entry for entry in strides if entry[0] == size != entry[3]]
        if not changes:
            break
        # Branches beside each other change the size alike; where they move the middle differently, half way.
        start_px += step_px * sum(moved for _, moved, _, _ in changes) / len(changes)
        step_px *= changes[0][2]
        size = changes[0][3]
    return start_px, step_px


Method = Literal["gradcam", "occlusion"]
METHODS: tuple[Method, ...] = get_args(Method)
UNITS: dict[Method, str] = {"gradcam": "", "occlusion": "log-odds"}
"""Of a map; "" is none."""

OCCLUSION_GRID = 12
"""Patches along each side; each is two steps wide, so they overlap by half, and their number is (grid - 1) squared."""
_BATCH = 32

Maps = npt.NDArray[np.float32]


class Explainer:
    """Makes the maps of one network.

    Args:
        model: In evaluation mode, on the device that it is to run on.
        recipe: Its own.
        method: "gradcam" or "occlusion".

    Raises:
        InputError: no such method, or Grad-CAM cannot read this backbone.
        MissingExtraError: captum is not installed.
    """

    def __init__(
        self,
        model: FractureClassifier,
        recipe: Recipe,
        method: Method = "gradcam",
    ) -> None:
        if method not in METHODS:
            raise InputError(f"no such method: {method}", fix=f"choose one of {', '.join(METHODS)}")
        self.model, self.recipe, self.method = model, recipe, method
        self._device = next(model.parameters()).device
        self.layer = find_spatial_layer(model, recipe.shape) if method == "gradcam" else None
        self._grid = min(OCCLUSION_GRID, *recipe.size_px)
        self._attribute = _import_captum()

    def of(self, model: FractureClassifier) -> Explainer:
        """The same way of explaining, of another network of the same kind."""
        return Explainer(model, self.recipe, self.method)

    @property
    def cell_px(self) -> tuple[float, float]:
        """(rows, columns) of the recipe's grid that one value of the map stands for, before it is made smooth."""
        if self.layer is not None:
            return self.layer.step_px, self.layer.step_px
        return self.recipe.size_px[0] / self._grid, self.recipe.size_px[1] / self._grid

    def describe(self) -> str:
        """The method and what it was set to, in words."""
        if self.layer is not None:
            rows, columns = self.layer.size
            return f"Grad-CAM of {self.layer.name}, {rows} x {columns} cells"
        return f"occlusion of {self._grid - 1} x {self._grid - 1} patches by a blurred copy"

    def explain_pixels(
        self, pixels: npt.NDArray[np.uint8], on_slice: Callable[[int], None] | None = None
    ) -> Maps:
        """The maps of slices that have been through the recipe's pixel steps.

        Args:
            pixels: (N, *recipe.shape) uint8.
            on_slice: Called with how many slices more are done.

        Returns:
            (N, height, width) float32, not below 0.
        """
        return np.maximum(self.explain_signed(pixels, on_slice), 0)

    def explain_signed(
        self, pixels: npt.NDArray[np.uint8], on_slice: Callable[[int], None] | None = None
    ) -> Maps:
        """The same with what speaks against a fracture, below 0."""
        if pixels.shape[1:] != self.recipe.shape:
            raise ValueError(f"the slices are {pixels.shape[1:]}, the recipe makes {self.recipe.shape}")
        maps = np.empty((len(pixels), *self.recipe.size_px), np.float32)
        # Occlusion runs a batch for every slice; Grad-CAM takes several slices at once.
        step = _BATCH if self.method == "gradcam" else 1
        for start in range(0, len(pixels), step):
            part = np.asarray(pixels[start : start + step])
            batch = torch.from_numpy(part.astype(np.float32)).to(self._device)
            batch = batch.unsqueeze(1) if batch.ndim == 3 else batch
            if self.layer is not None:
                maps[start : start + len(part)] = self._run_gradcam(batch)
            else:
                maps[start : start + len(part)] = self._run_occlusion(batch)
            if on_slice:
                on_slice(len(part))
        if not np.isfinite(maps).all():
            raise InputError(
                "the network gives values that are not finite, and so has no map",
                where=f"model {self.model.spec.name}",
                fix="train it again",
            )
        return maps

    def explain_slices(self, items: Sequence[Slice]) -> list[Maps]:
        """Maps of raw slices, read with the recipe's `offsets_mm`, each on the grid of its slice: (H, W) float32."""
        heats = self.explain_pixels(np.stack([self.recipe.apply(item) for item in items]))
        return [self.recipe.locate(item).bring_back(heat) for item, heat in zip(items, heats, strict=True)]

    def _run_gradcam(self, batch: Tensor) -> Maps:
        assert self.layer is not None
        method = self._attribute.LayerGradCam(self.model, self.layer.module)
        with torch.enable_grad():
            cells = method.attribute(batch)[:, 0].detach().float().cpu().numpy()
        start, step = self.layer.start_px, self.layer.step_px
        grids = [sample_grid(one, (start, start), (step, step), self.recipe.size_px) for one in cells]
        return np.stack(grids)

    @torch.no_grad()
    def _run_occlusion(self, batch: Tensor) -> Maps:
        height, width = self.recipe.size_px
        channels = batch.shape[1]
        strides = max(1, round(height / self._grid)), max(1, round(width / self._grid))
        window = min(height, 2 * strides[0]), min(width, 2 * strides[1])
        blurred = [
            cv2.GaussianBlur(channel, (0, 0), sigmaX=window[1] / 2, sigmaY=window[0] / 2)
            for channel in batch[0].cpu().numpy()
        ]
        fallen = self._attribute.Occlusion(self.model).attribute(
            batch,
            sliding_window_shapes=(channels, *window),
            strides=(channels, *strides),
            baselines=torch.from_numpy(np.stack(blurred))[None].to(self._device),
            perturbations_per_eval=_BATCH,
        )
        # A patch covers all channels, so they all carry its fall. Over a step all pixels have one value, and the
        # largest would be said to lie in a corner: averaged over a step, it lies in the middle.
        steps = fallen[:, 0].float().cpu().numpy()
        return np.stack([cv2.blur(one, (strides[1] | 1, strides[0] | 1)) for one in steps])


def _import_captum() -> Any:
    try:
        import captum.attr
    except ImportError:
        raise MissingExtraError("explaining what a network looks at", "studies") from None
    return captum.attr


# Networks whose weights are random from the head on: for the sanity check of maps (Adebayo et al. 2018).


ALL = "all weights"


def list_parts(model: FractureClassifier) -> dict[str, list[str]]:
    """The network's tensors by stage, in the order of the way through it; the last part is the head.

    timm says where stages end; what lies before one belongs to it, and what follows the last one to the head.
    """
    names = list(model.state_dict())
    ends: dict[str, int] = {}
    for stage in getattr(model.backbone, "feature_info", ()):
        prefix = f"backbone.{stage.get('module', '')}."
        places = [place for place, name in enumerate(names) if name.startswith(prefix)]
        if places:
            ends[str(stage["module"])] = places[-1]
    parts: dict[str, list[str]] = {}
    start = 0
    for stage_name, end in sorted(ends.items(), key=lambda item: item[1]):
        parts[stage_name] = names[start : end + 1]
        start = end + 1
    parts["head"] = names[start:]
    return parts


def randomise(
    model: FractureClassifier, scale: Scale, seed: int, parts: int | None = None
) -> FractureClassifier:
    """A copy whose last `parts` parts have the random weights that a training of this seed starts from.

    Args:
        model: Stays as it is.
        scale: Of its recipe.
        seed: Of the random weights.
        parts: Of `list_parts`, from the head on; None is all of them.
    """
    fresh = build_classifier(model.spec, scale, seed=seed).state_dict()
    made = copy.deepcopy(model)
    stages = list(list_parts(model).values())
    chosen = stages if parts is None else stages[len(stages) - parts :]
    state = model.state_dict()
    for names in chosen:
        for name in names:
            # What training alone puts there, as how far a study may lie, has no random start.
            if name in fresh and fresh[name].shape == state[name].shape:
                state[name] = fresh[name]
    made.load_state_dict(state)
    return made.eval()
