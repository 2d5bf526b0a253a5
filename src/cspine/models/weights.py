"""Pretrained weights: from timm's hub by a pinned tag, from a local file, or none; never a silent fall back."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cspine.core.errors import WeightsError
from cspine.models.header import ModelSpec, find_tag
from cspine.preprocess import Scale

NONE = "none"
PRETRAINED = "pretrained"
TIMM_PREFIX = "timm:"

_HUB_TIMEOUT_S = 5.0

_WAYS_OUT = (
    'give a local file (weights = "path/to/backbone.safetensors"), start from random weights (weights = "none"), '
    "or run once where the hub can be reached: timm then finds the file in its cache"
)


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """What a backbone starts from.

    Attributes:
        state: Tensors by the backbone's own names, or None for random weights.
        scale: What the weights expect of their input.
        origin: For the record: "none", "timm:<tag>" or "file:<name> (SHA-256 <its first 16 digits>)".
    """

    state: dict[str, Tensor] | None
    scale: Scale
    origin: str


def load_weights(weights: str, spec: ModelSpec, *, channels: int = 3) -> LoadedWeights:
    """Find the weights that an experiment names.

    Args:
        weights: "none", "pretrained" (the zoo's pinned tag, or timm's default for other backbones), "timm:<tag>", or
            a path to a `.safetensors` file.
        spec: The model that they are for.
        channels: How many channels the backbone takes.

    Raises:
        WeightsError: the hub cannot be reached, the tag or file does not exist, or it holds another architecture.
    """
    if weights == NONE:
        return LoadedWeights(None, Scale(mean=(0.0,) * channels, std=(1.0,) * channels), NONE)
    if weights == PRETRAINED or weights.startswith(TIMM_PREFIX):
        tag = weights.removeprefix(TIMM_PREFIX) if weights != PRETRAINED else find_tag(spec.backbone)
        return _load_from_hub(tag or spec.backbone, spec, channels)
    return _load_from_file(Path(weights).expanduser(), spec, channels)


def _load_from_hub(tag: str, spec: ModelSpec, channels: int) -> LoadedWeights:
    if tag.split(".")[0] != spec.backbone:
        raise WeightsError(
            f"the tag {tag!r} belongs to another architecture than {spec.backbone!r}",
            where=f"models.{spec.name}.weights",
            fix=f'name a tag that starts with "{spec.backbone}."',
        )
    try:
        _check_hub(tag)
        model = timm.create_model(tag, pretrained=True, num_classes=0, in_chans=channels)
    except (
        Exception
    ) as error:  # the hub's client raises many kinds: no network, no such file, a broken download
        raise WeightsError(
            f"the weights {tag!r} could not be had from timm's hub ({type(error).__name__})",
            where=f"models.{spec.name}.weights",
            fix=_WAYS_OUT,
        ) from error
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return LoadedWeights(state, _default_scale(tag, channels), f"{TIMM_PREFIX}{tag}")


def _check_hub(tag: str) -> None:
    """Fail within seconds where the hub has no answer: its own client goes on trying for most of a minute."""
    config = timm.get_pretrained_cfg(tag, allow_unregistered=True)
    repository = str(config.hf_hub_id or "") if config else ""
    repository = f"{repository}{tag}" if repository.endswith("/") else repository
    cached = any(
        isinstance(try_to_load_from_cache(repository, name), str)
        for name in ("model.safetensors", "pytorch_model.bin")
        if repository
    )
    if cached:
        return
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    # An answer that is an error is an answer: the hub's client then says what is wrong.
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=_HUB_TIMEOUT_S).close()  # by the proxies of the environment


def _load_from_file(path: Path, spec: ModelSpec, channels: int) -> LoadedWeights:
    where = f"models.{spec.name}.weights = {path}"
    if path.suffix != ".safetensors" or not path.is_file():
        what = (
            "there is no such weights file" if path.suffix == ".safetensors" else "weights of an unknown kind"
        )
        raise WeightsError(
            what,
            where=where,
            fix='name a .safetensors file that exists, "pretrained", "timm:<tag>" or "none"',
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"the file is not readable as safetensors: {error}",
            where=where,
            fix="get the file again, or name another",
        ) from error
    try:
        scale = _scale_from_metadata(metadata, channels) or _default_scale(spec.backbone, channels)
    except (ValueError, TypeError) as error:
        raise WeightsError(
            "the file's mean and std, or input, cannot be read",
            where=where,
            fix="write mean and std into its metadata as JSON lists on 0..1",
        ) from error
    return LoadedWeights(state, scale, f"file:{path.name} (SHA-256 {digest[:16]})")


def _default_scale(model: str, channels: int) -> Scale:
    config = timm.get_pretrained_cfg(model, allow_unregistered=True)
    mean, std = (config.mean, config.std) if config else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if channels != len(mean):
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    return Scale(mean=tuple(mean), std=tuple(std))


def _scale_from_metadata(metadata: dict[str, str], channels: int) -> Scale | None:
    """Read `mean` and `std` (JSON lists on 0..1), or an `input` that says "(x - a) / b" on 0..255."""
    if "mean" in metadata and "std" in metadata:
        return Scale(mean=tuple(json.loads(metadata["mean"])), std=tuple(json.loads(metadata["std"])))
    found = re.search(r"\(x\s*-\s*([\d.]+)\)\s*/\s*([\d.]+)", metadata.get("input", ""))
    if not found:
        return None
    mean, std = float(found[1]) / 255, float(found[2]) / 255
    return Scale(mean=(mean,) * channels, std=(std,) * channels)


def apply_weights(backbone: nn.Module, loaded: LoadedWeights, spec: ModelSpec) -> None:
    """Put the weights into the backbone; a classifier of the source task is left out, anything else must fit.

    Raises:
        WeightsError: tensors are missing, unknown or of another shape; the backbone may then be partly filled.
    """
    if loaded.state is None:
        return
    own = backbone.state_dict()
    classifier = _classifier_names(spec)
    given = {name: value for name, value in loaded.state.items() if not name.startswith(classifier)}
    problems = _differences(own, given)
    if problems:
        raise WeightsError(
            f"the weights do not fit {spec.backbone}: {'; '.join(problems[:3])}"
            + (f" and {len(problems) - 3} more" if len(problems) > 3 else ""),
            where=f"models.{spec.name}.weights ({loaded.origin})",
            fix=f"name weights of timm's {spec.backbone}",
        )
    with torch.no_grad():
        backbone.load_state_dict({name: given.get(name, own[name]) for name in own})


def _classifier_names(spec: ModelSpec) -> tuple[str, ...]:
    config = timm.get_pretrained_cfg(spec.backbone, allow_unregistered=True)
    names: Any = getattr(config, "classifier", None)
    names = (names,) if isinstance(names, str) else tuple(names or ())
    return tuple(f"{name}." for name in names) or ("fc.",)


def _differences(own: dict[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    problems = [f"no tensor {name!r}" for name in own.keys() - given.keys() - counters]
    problems += [f"unknown tensor {name!r}" for name in given.keys() - own.keys()]
    problems += [
        f"{name!r} is {tuple(given[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & given.keys()
        if own[name].shape != given[name].shape
    ]
    return sorted(problems)
