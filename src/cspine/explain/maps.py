"""Maps of positive evidence: which parts of a slice speak for a fracture.

gradcam    Grad-CAM (Selvaraju et al. 2017, ICCV): the channels of a late layer, weighted by how the logit of
           `fracture` changes with each; what is left below 0 speaks against and is cut. One pass and its gradient a
           slice. Its unit has no meaning.
occlusion  Each patch of a grid is replaced by a blurred copy of the slice (Zeiler and Fergus 2014, ECCV, with the fill
           of Fong and Vedaldi 2017, ICCV: a hole would be an edge of its own), and the fall of the logit is noted where
           the patch was. About `OCCLUSION_GRID` squared passes a slice. Its unit is log-odds.

Both are captum's; a map is (H, W) float32, never below 0, on the grid of the recipe's result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cspine.data.types import Slice
from cspine.errors import InputError, MissingExtraError
from cspine.explain.layers import FEWEST_CELLS, find_spatial_layer
from cspine.models.classifier import FractureClassifier
from cspine.placement import sample_grid
from cspine.preprocess import Recipe

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
        method: See the head of this module.
        fewest_cells: Of Grad-CAM's layer, see `find_spatial_layer`.
        grid: Of occlusion, see `OCCLUSION_GRID`.

    Raises:
        InputError: no such method, or Grad-CAM cannot read this backbone.
        MissingExtraError: captum is not installed.
    """

    def __init__(
        self,
        model: FractureClassifier,
        recipe: Recipe,
        method: Method = "gradcam",
        *,
        fewest_cells: int = FEWEST_CELLS,
        grid: int = OCCLUSION_GRID,
    ) -> None:
        if method not in METHODS:
            raise InputError(f"no such method: {method}", fix=f"choose one of {', '.join(METHODS)}")
        self.model, self.recipe, self.method = model, recipe, method
        self._device = next(model.parameters()).device
        self.layer = find_spatial_layer(model, recipe.shape, fewest_cells) if method == "gradcam" else None
        self._fewest_cells = fewest_cells
        self._grid = min(grid, *recipe.size_px)
        self._attribute = _import_captum()

    def of(self, model: FractureClassifier) -> Explainer:
        """The same way of explaining, of another network of the same kind."""
        return Explainer(model, self.recipe, self.method, fewest_cells=self._fewest_cells, grid=self._grid)

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

    def explain_slice(self, item: Slice) -> Maps:
        """The map of a raw slice, read with the recipe's `offsets_mm`, on the grid of the slice: (H, W) float32."""
        return self.explain_slices([item])[0]

    def explain_slices(self, items: Sequence[Slice]) -> list[Maps]:
        """The same of several slices."""
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
