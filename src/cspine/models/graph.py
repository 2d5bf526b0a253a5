"""A network as a graph that other engines run: the recipe's pixels in, logits and features out, the scale inside."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from cspine.models.classifier import FractureClassifier
from cspine.preprocess import Recipe

INPUT, LOGIT, FEATURES = "pixels", "logit", "features"
OPSET = 18
_TRACED_BATCH = 2  # one slice could be taken for a constant


class Graph(nn.Module):
    """(N, *recipe.shape) uint8 -> (N,) logits of `fracture` and (N, features), both float32."""

    def __init__(self, model: FractureClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Answer, and what the head was given for it."""
        features = self.model.find_features(pixels)
        return self.model.answer(features), features.float()


def make_onnx(model: FractureClassifier, recipe: Recipe) -> bytes:
    """The network as an ONNX file of any batch size; `model` must lie on the CPU, in evaluation mode.

    By PyTorch's older exporter, on TorchScript: the newer one needs one more package, and nothing is gained for these
    networks (docs/log.md).
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        path = Path(folder) / "model.onnx"
        warnings.simplefilter(
            "ignore"
        )  # that the older exporter is the older one, and what tracing cannot see
        torch.onnx.export(
            Graph(model).eval(),
            (_make_example(recipe),),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[LOGIT, FEATURES],
            dynamic_axes={name: {0: "batch"} for name in (INPUT, LOGIT, FEATURES)},
        )
        return path.read_bytes()


def trace_graph(model: FractureClassifier, recipe: Recipe) -> torch.jit.ScriptModule:
    """The network as frozen TorchScript of any batch size; `model` must lie on the CPU, in evaluation mode."""
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated in favour of torch.export
        traced = torch.jit.trace(Graph(model).eval(), _make_example(recipe))  # type: ignore[no-untyped-call]
        return cast(torch.jit.ScriptModule, torch.jit.freeze(traced))


def _make_example(recipe: Recipe) -> Tensor:
    return torch.zeros((_TRACED_BATCH, *recipe.shape), dtype=torch.uint8)
