"""How a model gets its second stage: built, fitted, attached, and restored from the tensors of its weights.

A form of second stage is a row of `FORMS`. Nothing else knows which forms there are.

Shapes: B histories, T items of the longest, N items (row 0 = padding), R histories of validation.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import InputError
from ..model.catalogue import Catalogue
from ..model.protocol import FirstStage, NeedsDataError, RankingModel, ranker_of
from ..settings import second_stage_settings
from .boosted import build_boosted, restore_boosted
from .boosted_fit import fit_boosted
from .linear import CandidateSimilarity, build_linear, restore_linear
from .linear_fit import fit_and_tell
from .ranker import BoostedRanker
from .trees import lightgbm

PREFIX = "second_stage."
"""Begins the names of a second stage's tensors in the state of its model."""


class Form(NamedTuple):
    """A form of second stage.

    Attributes
    ----------
    module : its class: `forward(first, histories)` gives scores [B, N], `forward(first, histories, targets)` scores in
        which targets [B] have the same ranks, and `take_over(fitted)` takes over what has been fitted over other
        training sequences, so that no history counts as fitted on. Nothing trains it.
    build : makes one that is not fitted yet from settings and training data; none where the settings leave nothing to
        it.
    restore : makes one for a `state_dict` and the catalogue of its items, of that size and ready to load it.
    fit : fits it in place to histories [R, T] (0 pads on the right) and their next items [R], given what the model says
        after histories, a seed, and whether to show progress. Returns a sentence for the log, and whether the fitted
        stage is worth keeping.
    """

    module: type[nn.Module]
    build: Callable[[Any, Any], nn.Module | None]
    restore: Callable[[Mapping[str, torch.Tensor], Catalogue], nn.Module]
    fit: Callable[
        [Any, Callable[[torch.Tensor], FirstStage], torch.Tensor, torch.Tensor, int, bool],
        tuple[str, bool],
    ]


FORMS: dict[str, Form] = {
    "gbdt": Form(BoostedRanker, build_boosted, restore_boosted, fit_boosted),
    "linear": Form(CandidateSimilarity, build_linear, restore_linear, fit_and_tell),
}
"""The forms by the values of the key `second_stage`."""


INSTEAD = {"gbdt": "linear"}
"""What is fitted where a form has been left out: shrunk weights ask for fewer histories, and know what was seen."""


def check(model: Any, config: Any) -> None:
    """Check, before training starts, that `model` can have a second stage and that what fits it is installed."""
    form = second_stage_settings(config).get("second_stage")
    if form == "gbdt":
        lightgbm()
    if form and not isinstance(model, RankingModel):
        device = next(itertools.chain(model.parameters(), model.buffers())).device
        with asking(model, config) as first:
            first(torch.ones(1, 1, dtype=torch.long, device=device))


def build(config: Any, dataset: Any, form: str = "") -> Any:
    """Return a second stage, not fitted yet, of a form, by default that of the settings; none if it has no signal."""
    return FORMS[form or config["second_stage"]].build(config, dataset)


def fit(
    stage: nn.Module, model: Any, config: Any, histories: torch.Tensor, targets: torch.Tensor, progress: bool = False
) -> tuple[str, bool]:
    """Fit `stage` in place to a model that carries none; see `Form.fit` and `asking`."""
    with asking(model, config) as first:
        return FORMS[str(form_of(stage))].fit(stage, first, histories, targets, config["seed"], progress)


@contextlib.contextmanager
def asking(model: Any, config: Any) -> Iterator[Callable[[torch.Tensor], FirstStage]]:
    """Give what a model that carries no second stage says after histories [B, T].

    A model that cannot score histories by themselves is an `InputError`.
    """
    model.eval()
    try:
        with torch.no_grad():
            yield _first_stage(model, config)
    except (NeedsDataError, NotImplementedError) as error:
        why = f"found that {config['model']} needs more than histories ({error or 'it scores single items'})"
        raise InputError(f"second_stage: {why}; set --second_stage=off") from error


def _first_stage(model: Any, config: Any) -> Callable[[torch.Tensor], FirstStage]:
    ranker = ranker_of(model, config)
    shared = ranker.shared()
    return lambda histories: ranker.first_stage(histories, shared=shared)


def attach(model: Any, stage: nn.Module | None) -> None:
    """Make `stage` part of a model's scores and weights, in place; none takes away the one there is.

    Of RecBole's own models, `full_sort_predict` goes through it, which the ranker, RecBole's evaluator and bundles
    call; `predict`, which scores single pairs, stays the model's own.
    """
    if stage is not None:
        stage = stage.to(next(itertools.chain(model.parameters(), model.buffers())).device)
    model.second_stage = stage
    if isinstance(model, RankingModel):
        return
    vars(model).pop("full_sort_predict", None)
    if stage is not None:
        # A bound method, unlike a closure, follows the model through copy.deepcopy.
        model.full_sort_predict = MethodType(_full_sort_predict, model)


def _full_sort_predict(model: Any, interaction: Any) -> torch.Tensor:
    """Scores [B, N] of one of RecBole's models, its second stage included."""
    histories = interaction[model.ITEM_SEQ]
    scores = type(model).full_sort_predict(model, interaction).view(len(histories), -1)
    return model.second_stage(FirstStage(scores), histories)


def form_of(stage: Any) -> str | None:
    """Name of the form of a second stage; none for anything else."""
    return next((name for name, form in FORMS.items() if type(stage) is form.module), None)


def attach_from_state(model: Any, state: Mapping[str, torch.Tensor], kind: str | None) -> None:
    """Give a model the second stage of form `kind` that its state holds, in the size it has there; or none."""
    found = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    attach(model, FORMS[kind].restore(found, model.catalogue) if found and kind else None)
