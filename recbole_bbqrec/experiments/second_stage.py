"""What the second stage of a model is made of: fitted anew without each group of features, over the same candidates.

The model is trained, or found finished, once. Candidates and the features of all groups are computed once as well; a
variant is a choice of columns. Everything is judged on validation by trees that have not seen the judged history, and
nothing here looks at test.

A record is `runs/<Set>/second-stage/<Model>-<seed>-<key>.json`, as `records` has them, with a variant where those of
runs have a split. It is written after every variant, so a study that is killed goes on where it stopped.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import claims, quick_start, run_log
from ..config import Config
from ..data.sequences import seen_before
from ..errors import InputError
from ..evaluation.configuration import name_of_split
from ..evaluation.leakage import check_leakage
from ..evaluation.ranking import Ranks
from ..layers import layered, read_files
from ..modalities import MODALITIES
from ..run_record import record_of
from ..second_stage import socket
from ..second_stage.boosted import POPULARITY
from ..second_stage.boosted_fit import Examples, chosen, collect, cross_fit, gains
from ..second_stage.features import HELD, MODEL, Feature
from ..settings import MAY_BE_UNUSED, second_stage_settings
from ..tokenizer.memory import PeakMemory
from ..training.afterwards import rows_to_fit
from . import records, second_stage_page
from .runner import QUIET, check_judged, given_and_files, say
from .second_stage_page import GBDT, LINEAR, OFF, POPULARITY_ALONE, SCORES_ALONE, WITH_POPULARITY, WITHOUT

PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "behavior": ("behavior", ("",)),
    "transitions": ("behavior", ("next_",)),
    "together": ("behavior", ("together",)),
    "walks": ("behavior", ("step", "walk", "side_")),
    **{name: (name, ("",)) for name in MODALITIES},
    "towers": ("towers", ("",)),
    "codes": ("codes", ("",)),
    "transitions of codes": ("codes", ("codes_",)),
    "quantised vectors": ("codes", ("quantised_",)),
    "log p of IDs": ("codes", ("id_log_p",)),
}
"""What is taken away, one at a time: a group of features, and how the names of its signals begin."""


class _Fitted(NamedTuple):
    """A variant: ranks of the judged rows, and what the page says of the fit."""

    ranks: Ranks
    about: dict[str, Any]


def study(model: str, dataset: str, n_seeds: int, arguments: Sequence[str], results: Path = Path("results")) -> str:
    """Fit the variants of a model that scores all items, those that have no record yet; return the page.

    The page is written after every seed. For the other parameters see `experiments`.
    """
    given, files = given_and_files(arguments, "the study", n_seeds)
    given = {**_checked(layered(read_files(files), given)), "model": model, "dataset": dataset}
    config = Config(config_dict=given)
    check_judged(config)
    if not second_stage_settings(config):
        raise InputError("candidate_similarity: found no signal, which leaves no second stage to study; drop it")
    data = records.about_data(config)
    seeds, key = range(config["seed"], config["seed"] + n_seeds), _key(config, data)
    work = records.folder_of(results, dataset) / "claims" / f"second-stage-{key}"
    for seed in claims.in_turn(seeds, lambda seed: work.with_name(f"{work.name}-{seed}")):
        _study_seed({**QUIET, **given, "seed": seed, MAY_BE_UNUSED: True}, data, results)
        page = second_stage_page.write(dataset, results, name_of_split(config))
    return page


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the study: those that are given, which may not decide what it decides itself."""
    if given.get("second_stage", GBDT) != GBDT:
        found = f"found {given['second_stage']!r}"
        raise InputError(f"second_stage: {found}, but the study compares everything with {GBDT}; drop it")
    if POPULARITY in (given.get("candidate_similarity") or ()):
        raise InputError(f"candidate_similarity: found {POPULARITY}, which the study adds by itself; take it out")
    if given.get("final"):
        raise InputError("final: the study never looks at test; drop it")
    return {**given, "second_stage": GBDT}


def _key(config: Config, data: Mapping[str, Any]) -> str:
    return records.run_key(records.comparable_settings(config), data["data_fingerprint"])


def _study_seed(given: dict[str, Any], data: Mapping[str, Any], results: Path) -> None:
    """Train one seed, fit its variants and keep the record up to date."""
    config, source, memory = Config(config_dict=given), records.code_fingerprint(), PeakMemory()
    settings, key = records.comparable_settings(config), _key(config, data)
    folder, title = second_stage_page.folder_of(results, config["dataset"]), f"{config['model']}, seed {config['seed']}"
    path = folder / f"{config['model']}-{config['seed']}-{key}.json"
    known = records.Run(path) if path.is_file() else None
    if known and known.splits.issuperset(known.record["planned"]):
        say(f"{title}: all variants are finished")
        return
    say(f"{title}: training, unless it is finished, then the features of all candidates")
    run_log.open_file(config)
    trained = quick_start.train(config, inspect=check_leakage, finish=False)
    material = _Material(given, config, trained)
    ranks, variants = (dict(known.ranks), known.record["variants"]) if known else ({}, {})
    for at, (name, fit) in enumerate(material.planned.items(), start=1):
        if name in variants:
            continue
        say(f"{title}: [{at}/{len(material.planned)}] {name}")
        with _clock() as spent:
            fitted = fit()
        ranks[name], variants[name] = fitted.ranks, {**fitted.about, **spent}
        record = {
            **record_of(config, trained, ranks, memory),
            **trained.inspected,
            "run_dir": trained.trainer.folder.training.name,
            **data,
            **{"source": source, "settings": settings, "run_key": key, "times_tested": 0},
            "variants": variants,
            "planned": list(material.planned),
            "left_out": material.left_out,
            "work": material.work,
            "targets": {"judged": len(material.alone.users), "among_candidates": len(material.examples.fold)},
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        records.write(folder, config["model"], record, ranks)


class _Material:
    """What all variants of a trained model are made of.

    Attributes
    ----------
    alone : ranks of the model without a second stage.
    examples : the candidates with the features of all groups, of the histories whose target is among them.
    work : seconds of making the signals, and of the candidates with their features.
    planned : variant -> its fit. left_out : variant -> why it has none.
    """

    def __init__(self, given: dict[str, Any], config: Config, trained: quick_start.Trained) -> None:
        self._config, self._trained = config, trained
        train, valid, _ = (loader._dataset for loader in trained.loaders)
        model, signals = trained.trainer.model, config["candidate_similarity"]
        with _clock() as of_signals:
            more = Config(config_dict={**given, "candidate_similarity": [*signals, POPULARITY]})
            stage = socket.build(more, train).to(config["device"])
            stage.features = (*stage.features, HELD)
        fitted, *asked = rows_to_fit(valid)
        self._rows = [part.to(config["device"]) for part in asked]
        of_fitted = chosen(stage, self._rows[0], self._rows[1])
        self._chosen = fitted[of_fitted.cpu().numpy()]
        self.alone = self._rank()
        with _clock() as of_candidates, socket.asking(model, config) as first:
            histories, targets = (part[of_fitted] for part in self._rows)
            self.examples = collect(stage, first, histories, targets, config["show_progress"])
        if len(np.unique(self.examples.fold)) < 2:
            found = f"found {len(self.examples.fold)} histories whose next item is among the candidates"
            raise InputError(f"second_stage: {found}, too few to fit trees on; take a larger data set")
        self.work = {"signals": of_signals, "candidates": of_candidates}
        # Fits count as seen only what the history holds; the ranking also leaves out what the history has no room for.
        seen = seen_before(valid, [train])[self._chosen[self.examples.row]]
        self._is_seen = np.asarray(seen[self.examples.history, self.examples.item]).ravel().astype(bool)
        self._features = stage.features
        linear = Config(config_dict={**given, "second_stage": LINEAR})
        self.planned: dict[str, Callable[[], _Fitted]] = {OFF: lambda: _Fitted(self.alone, {"features": 0})}
        if (of_weights := socket.build(linear, train)) is not None:
            self.planned[LINEAR] = lambda: self._linear(linear, of_weights)
        columns, self.left_out = columns_of(self._features, self.examples.features)
        self.planned |= {name: functools.partial(self._boosted, kept) for name, kept in columns.items()}

    def _rank(self) -> Ranks:
        """Rank the judged rows with the model as it is."""
        train, valid, _ = self._trained.loaders
        found = self._trained.trainer.rank(valid, [train._dataset], self._config["show_progress"])
        rows = self._chosen
        return Ranks(found.users[rows], found.masked[rows], found.unmasked[rows])

    def _linear(self, config: Config, stage: Any) -> _Fitted:
        model = self._trained.trainer.model
        stage = stage.to(config["device"])
        histories, targets = self._rows
        socket.fit(stage, model, config, histories, targets, config["show_progress"])
        socket.attach(model, stage)
        ranks = self._rank()
        socket.attach(model, None)
        return _Fitted(ranks, {"features": stage.n_weights})

    def _boosted(self, kept: list[int]) -> _Fitted:
        """Fit trees on some of the features; a target that is no candidate keeps the rank that the model gave it."""
        examples = self.examples._replace(features=self.examples.features[:, kept])
        features = [self._features[column] for column in kept]
        found = cross_fit(examples, features, self._config["seed"], self._config["show_progress"])
        n_trees, judged = found.best(examples)
        is_better = gains(examples.values(self.examples.features[:, 0]), judged)
        ranks = judged_ranks(self.alone, examples._replace(is_seen=self._is_seen), found.log_odds[n_trees])
        return _Fitted(ranks, {"features": len(kept), "trees": n_trees, "is_better": is_better})


def judged_ranks(alone: Ranks, examples: Examples, log_odds: np.ndarray) -> Ranks:
    """Ranks of all rows by a second stage, given those of the model `alone` and the log-odds [n] of the candidates.

    Whatever is no candidate stands below all of them. A target among the candidates has its exact rank; any other keeps
    the model's, which is beyond the model's best that are candidates, so beyond 10 in either ranking.
    """
    masked, unmasked = alone.masked.copy(), alone.unmasked.copy()
    masked[examples.row] = examples.ranks(log_odds)
    unmasked[examples.row] = examples._replace(is_seen=np.zeros_like(examples.is_seen)).ranks(log_odds)
    return Ranks(alone.users, masked, unmasked)


def columns_of(features: Sequence[Feature], values: np.ndarray) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Columns of each variant by trees, given all features and their values [n, F], and why some have none.

    Popularity is a held feature, except where a variant asks for it.
    """
    groups = np.array([feature.group for feature in features])
    is_popularity = np.array([feature.signal.startswith(POPULARITY) for feature in features])
    usual: list[int] = np.flatnonzero(groups != POPULARITY).tolist()
    found, left_out = {GBDT: usual}, {}
    for name, (group, begins) in PARTS.items():
        part = [at for at in usual if groups[at] == group and features[at].signal.startswith(begins)]
        if not part:
            left_out[WITHOUT + name] = "the model or the data set has none"
        elif (values[:, part] == values[:1, part]).all():
            left_out[WITHOUT + name] = "it says the same of all candidates"
        elif (rest := [at for at in found[GBDT] if at not in part]) in found.values():
            same = next(known for known, columns in found.items() if columns == rest)
            left_out[WITHOUT + name] = f"the same as {same}"
        else:
            found[WITHOUT + name] = rest
    for name, others in {
        SCORES_ALONE: np.isin(groups, (MODEL, HELD.group)),
        POPULARITY_ALONE: (groups == MODEL) | (is_popularity & (groups == POPULARITY)),
        WITH_POPULARITY: groups != HELD.group,
    }.items():
        found[name] = np.flatnonzero(others).tolist()
    return found, left_out


@contextlib.contextmanager
def _clock() -> Iterator[dict[str, float]]:
    """Yield a dict that has the block's seconds and CPU seconds once it has ended."""
    spent: dict[str, float] = {}
    started = time.perf_counter(), time.process_time()
    yield spent
    spent |= {"seconds": time.perf_counter() - started[0], "cpu_seconds": time.process_time() - started[1]}
