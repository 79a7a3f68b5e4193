"""Features of candidates: what the model says of one, and what the history's items say, each in a few forms.

Shapes: B histories, C candidates of each, J items of the history from the last one backwards, N items, F features.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..model.protocol import FirstStage
from .signals import Batch

DECAY = 0.7
"""Factor for every step back in the history."""


PLACES = {"last": 0, "second": 1, "third": 2}


def brought(form: str, said: Tensor) -> Tensor:
    """What each item of the history brings to a feature of this form [..., J], of what it says [..., J]."""
    back = torch.arange(said.shape[-1], device=said.device)
    if form in PLACES:
        return said * (back == PLACES[form])
    return said * DECAY ** back.to(said.dtype) if form == "decayed" else said


def _at(back: int) -> Callable[[Tensor], Tensor]:
    return lambda said: said[..., back] if said.shape[2] > back else torch.zeros_like(said[..., 0])


def _most(said: Tensor) -> Tensor:
    largest = said.masked_fill(said == 0, -torch.inf).amax(2)  # padding says nothing, however wide it is
    return largest.masked_fill(largest.isneginf(), 0.0)


FORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    **{form: _at(back) for form, back in PLACES.items()},
    "decayed": lambda said: said @ DECAY ** torch.arange(said.shape[2], dtype=said.dtype, device=said.device),
    "most": _most,
    "number": lambda said: (said != 0).sum(2).to(said.dtype),
}
"""What becomes of what each item of the history says of each candidate, [B, C, J] -> [B, C]: that of the last item, of
the one before it and of the third, the sum with a factor `DECAY` for every step back, the largest of what is said, and
how many say anything."""


class Feature(NamedTuple):
    """A feature: its `group`, the `signal` it is made of and the `form` in which, and the way it may push.

    `direction` 1: more of it never speaks against a candidate; -1: never for it; 0: either. One that `is_held` is known
    to trees while they are fitted, but they rank without it, see `Trees.fit`.
    """

    group: str
    signal: str
    form: str
    direction: int = 0
    is_held: bool = False


MODEL = "model"
OF_MODEL = (
    Feature(MODEL, "score", "", 1),  # of the model
    Feature(MODEL, "margin", "", 1),  # score less that of the best candidate
    Feature(MODEL, "rank", "", -1),  # place among the candidates of the model, from 0
    Feature(MODEL, "length", ""),  # of the history
    Feature(MODEL, "seen", ""),  # 1 / steps back to where the candidate stands in the history; 0 where it does not
)
"""The features that every second stage has. The model's scores keep their direction: it has learned what is popular,
and trees that turn it upside down would learn which items were held out."""
HELD = Feature("held", "popularity", "last", is_held=True)
"""How often the candidate occurs in training, which in a k-core data set tells whether it has been held out."""
ID_LOG_P = Feature("codes", "id_log_p", "")
"""log p of the candidate's semantic ID, where the model has code heads."""


def model_features(first: FirstStage, batch: Batch, n_best: int) -> dict[str, Tensor]:
    """Features [B, C] of the signals in `OF_MODEL`; the first `n_best` candidates are the best of the model."""
    recent, items, _ = batch
    scores = first.scores.gather(1, items).float()
    places = torch.arange(items.shape[1], device=items.device, dtype=torch.float32).clamp(max=n_best)
    lengths = (recent != 0).sum(1, keepdim=True).float()
    best = torch.where(items[:, :1] > 0, scores[:, :1], 0.0)  # none where everything has been seen
    same = items.unsqueeze(2) == recent.unsqueeze(1)  # [B, C, J]
    steps = 1.0 / torch.arange(1, recent.shape[1] + 1, device=items.device)
    return {
        "score": scores,
        "margin": scores - best,
        "rank": places.expand_as(scores),
        "length": lengths.expand_as(scores),
        "seen": (same * steps).amax(2),
    }


def features_of(
    features: Iterable[Feature], signals: Mapping[str, nn.Module], first: FirstStage, batch: Batch, n_best: int
) -> Tensor:
    """Return the features [B, C, F] of candidates; what each item says is computed once for all forms of it."""
    known, found = model_features(first, batch, n_best), []
    signal, said = "", torch.zeros(0)  # of the signal that was asked last: its features stand side by side
    for feature in features:
        if feature.signal == ID_LOG_P.signal:
            found.append(first.id_log_p(batch.items) if first.id_log_p else torch.zeros_like(found[0]))
        elif feature.group == MODEL:
            found.append(known[feature.signal])
        else:
            if feature.signal != signal:
                signal, said = feature.signal, signals[feature.signal](batch)
            found.append(FORMS[feature.form](said))
    return torch.stack(found, dim=2)
