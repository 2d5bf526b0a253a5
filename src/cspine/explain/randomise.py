"""Networks whose weights are random from the head on: for the sanity check of maps (Adebayo et al. 2018)."""

from __future__ import annotations

import copy

from cspine.models.classifier import FractureClassifier, build_classifier
from cspine.preprocess import Scale

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
