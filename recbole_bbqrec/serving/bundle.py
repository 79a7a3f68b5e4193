"""A finished run without its data set: load its folder and recommend."""

import functools
import itertools
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import __version__, registry, storage
from ..errors import InputError
from ..evaluation.ranking import tie_order
from ..model.catalogue import Catalogue, ItemFeatures, SemanticIds
from ..model.decoding import Pairs
from ..model.protocol import NeedsDataError, ranker_of
from ..second_stage.ranker import BoostedRanker
from ..second_stage.reasons import Reason, reasons_for
from ..settings import plain_settings
from ..tokenizer.fit import Encoded
from ..training import checkpoint
from .calls import allowed_of, histories_of, number_of, tokens_of
from .dot_product import dot_product
from .index import FaissIndex
from .stand_in import StandIn, save_stand_in

BUNDLE, WEIGHTS, FEATURES = "bundle.json", checkpoint.WEIGHTS_FILE, "features.safetensors"
SEMANTIC_IDS, TOKENIZER = "semantic_ids.safetensors", "tokenizer.safetensors"
STAND_IN_FILE = "stand_in.safetensors"
BATCH = 512


class Recommendation(NamedTuple):
    """Items for one history, best first, with their scores; `unknown` are tokens given that the model has never met."""

    items: list[str]
    scores: list[float]
    unknown: list[str]


class Explained(Recommendation):
    """As `Recommendation`, which unpacks to the same three, with `reasons`, one for each item."""

    reasons: list[Reason]


class _Settings(dict[str, Any]):
    """Settings as RecBole's models read them: a missing key is `None`."""

    def __missing__(self, key: str) -> None:
        return None


class Bundle:
    """A trained model with its catalogue.

    Attributes
    ----------
    model : the trained model, in evaluation mode.
    catalogue : its items, with their features and semantic IDs.
    item_tokens : tokens by item id, `[PAD]` first.
    settings : the run's settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], catalogue: Catalogue) -> None:
        self.folder, self.settings, self.catalogue = folder, settings, catalogue
        self.model = registry.build_model(settings, StandIn(settings, catalogue, folder / STAND_IN_FILE))
        checkpoint.load_weights(folder / WEIGHTS, self.model)
        self.ranker = ranker_of(self.model.eval(), settings)
        self.item_tokens = catalogue.tokens
        self._ids = {token: index for index, token in enumerate(self.item_tokens) if index}
        self._index: FaissIndex | None = None

    @functools.cached_property
    def _shared(self) -> Any:
        """What all histories share: a loaded model does not change. Threads that ask first may each compute it."""
        with torch.no_grad():
            return self.ranker.shared()

    @functools.cached_property
    def _ties(self) -> torch.Tensor:
        """The order [N] in which items of equal scores come."""
        return tie_order(len(self.item_tokens), self.settings["seed"])

    def grown(self, new: ItemFeatures, encoded: Encoded | None = None) -> "Bundle":
        """Return a bundle that also scores and reads items that the model was not trained with.

        Parameters are those of `Catalogue.grown`.

        Raises
        ------
        InputError : too little is known of the items; the model decodes IDs, and one is taken; the model is RecBole's.
        """
        if self.settings["model"] not in registry.MODELS:
            raise InputError(
                f"new items: {self.settings['model']} scores the items that it was trained with, no others"
            )
        if encoded is None and getattr(self.model, "decoder", None) is not None:
            raise InputError("new items: found no codes, expected some; their IDs are what this model decodes")
        return Bundle(self.folder, self.settings, self.catalogue.grown(new, encoded))

    def use_index(self, kind: str = "faiss") -> "Bundle":
        """Find items by a nearest-neighbour index from now on, see `index`; return the bundle itself.

        The exact search stays for `allow`, `scores`, and lists that the index cannot fill.

        Raises
        ------
        InputError : the scores are no dot products, the bundle has a second stage, or faiss is not installed.
        """
        if kind != "faiss":
            raise InputError(f"index: found {kind!r}, expected 'faiss'; without an index the search is exact")
        if self.model.second_stage is not None:
            why = f"{self.folder} has a second stage, which reads the scores of all items"
            raise InputError(f"index: {why}; run with --second_stage=off, which does not train again")
        self._index = FaissIndex(dot_product(self.ranker, "index"), self.settings["seed"])
        return self

    def recommend(
        self,
        histories: Iterable[Any],
        k: int | None = 10,
        exclude_seen: bool = True,
        allow: Iterable[Any] | None = None,
        explain: bool = False,
    ) -> list[Recommendation]:
        """Recommend `k` items after each history.

        Item tokens may be given as the whole numbers that spell them, as tables have them; they come back as texts.

        Parameters
        ----------
        histories : iterables of item tokens in time order, such as a list of lists, or the column that
            `frame.groupby("user_id")["item_id"].apply(list)` makes. The model reads as many of the last items as it was
            trained for.
        k : number of items; fewer come back only where the catalogue or `allow` has no more, or a beam has found no
            more. None is for all items of `allow`.
        exclude_seen : leave out every item of the history, also those before the part the model reads.
        allow : item tokens to choose from: a list for all histories, or a list of lists, one for each history. All of
            them are scored, also what a beam search would not have found.
        explain : also say of each item what spoke for it most, see `second_stage.reasons`: the results are `Explained`.

        Returns
        -------
        One `Recommendation` per history, in order. A history without any known item gets an empty one.

        Raises
        ------
        InputError : what was given is something else; `explain` without a second stage by trees.
        """
        if explain and not isinstance(self.model.second_stage, BoostedRanker):
            why = "run with --second_stage=gbdt; where the run did, its log says that trees did not help"
            raise InputError(f"explain: found no second stage by trees in {self.folder}; {why}")
        given = histories_of(histories, self._ids)
        if k is None and allow is None:
            raise InputError("k: found None, expected a whole number; None is for all items of `allow`")
        count = len(self.item_tokens) if k is None else number_of(k)
        allowed = None if allow is None else allowed_of(allow, self._ids, len(given))
        results = self.ranked(given, count, exclude_seen, allowed)
        warn_of_unknown(token for result in results for token in result.unknown)
        return self._explained(given, results) if explain else results

    def ranked(
        self, histories: list[list[str]], k: int, exclude_seen: bool, allowed: list[list[str]] | None
    ) -> list[Recommendation]:
        """As `recommend`, from lists of item tokens; `allowed` is one list for all histories or one for each."""
        known, unknown = self._known(histories)
        permitted, others = (None, [[]]) if allowed is None else self._known(allowed)
        results = [Recommendation([], [], own + also) for own, also in zip(unknown, itertools.cycle(others))]
        for rows in _batches(known):
            of_rows = permitted if permitted is None or len(permitted) == 1 else [permitted[row] for row in rows]
            found = self._top([known[row] for row in rows], k, exclude_seen, of_rows)
            for row, (items, scores) in zip(rows, found, strict=True):
                results[row] = results[row]._replace(items=items, scores=scores)
        return results

    @torch.no_grad()
    def _explained(self, histories: list[list[str]], results: list[Recommendation]) -> list[Recommendation]:
        """The results for histories, with a reason for each item."""
        explained = [Explained(*result) for result in results]
        for result in explained:
            result.reasons = []
        known, items = self._known(histories)[0], self._known([result.items for result in results])[0]
        for rows in _batches(known):
            given = self._padded([known[row] for row in rows])
            offered = torch.nn.utils.rnn.pad_sequence([torch.tensor(items[row]).long() for row in rows], True)
            first = self.ranker.first_stage(given, shared=self._shared)
            found = reasons_for(self.model.second_stage, first, given, offered, self.item_tokens)
            for row, reasons in zip(rows, found, strict=True):
                explained[row].reasons = reasons
        return [*explained]

    def scores(self, histories: Iterable[Any], items: Iterable[Any] | None = None) -> np.ndarray:
        """Score items as the next one after each history.

        Parameters
        ----------
        histories : as in `recommend`.
        items : item tokens; none = the whole catalogue.

        Returns
        -------
        [B, N - 1] in the order of `item_tokens` without padding, or [B, m] in that of `items`, float32. Minus infinity
        is for what has no score: unknown items, what a beam search over the whole catalogue has not found, and all that
        comes after a history without any known item. `items` are scored exactly, without a search.
        """
        known, unknown = self._known(histories_of(histories, self._ids))
        tokens = self.item_tokens[1:] if items is None else tokens_of(items, self._ids, "items")
        columns = [column for column, token in enumerate(tokens) if token in self._ids]
        candidates = None if items is None else torch.tensor([self._ids[tokens[column]] for column in columns]).long()
        warn_of_unknown(token for each in (tokens, *unknown) for token in each if token not in self._ids)
        scores = np.full((len(known), len(tokens)), -np.inf, np.float32)
        for rows in _batches(known):
            found = self._score([known[row] for row in rows], candidates)
            scores[np.ix_(rows, columns)] = found[:, 1:] if items is None else found
        return scores

    def _known(self, lists: list[list[str]]) -> tuple[list[list[int]], list[list[str]]]:
        """Of each list of tokens the ids of the known ones, and the others."""
        known = [[self._ids[token] for token in tokens if token in self._ids] for tokens in lists]
        return known, [[token for token in tokens if token not in self._ids] for tokens in lists]

    @torch.no_grad()
    def _score(
        self, histories: list[list[int]], candidates: torch.Tensor | None = None, excluded: Pairs | None = None
    ) -> torch.Tensor:
        return self.ranker.score(self._padded(histories), candidates, excluded, self._shared)

    def _padded(self, histories: list[list[int]]) -> torch.Tensor:
        """Histories [B, T] as the model reads them."""
        length = self.settings["MAX_ITEM_LIST_LENGTH"]
        recent = [torch.tensor(history[-length:]) for history in histories]
        return torch.nn.utils.rnn.pad_sequence(recent, batch_first=True)

    def _top(
        self, histories: list[list[int]], k: int, exclude_seen: bool, permitted: list[list[int]] | None
    ) -> list[tuple[list[str], list[float]]]:
        n_items = len(self.item_tokens)
        pairs = [(row, item) for row, history in enumerate(histories) for item in history if exclude_seen]
        rows, items = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
        if permitted is None and self._index is not None:
            found = self._index.top(self._padded(histories), k, (rows, items))
            if found is not None:
                return self._lists(*found, len(histories), k)
        if permitted is None:
            # A beam search leaves out what has been seen before it cuts its beam, also what the model does not read.
            scores = self._score(histories, excluded=(rows, items)).clone()
        else:
            barred = torch.ones(len(permitted), n_items, dtype=torch.bool)
            for row, of_row in zip(barred, permitted, strict=True):
                row[of_row] = False
            candidates = torch.nonzero(~barred.all(0)).flatten()
            scores = torch.full((len(histories), n_items), -torch.inf)
            scores[:, candidates] = self._score(histories, candidates)
            scores.masked_fill_(barred, -torch.inf)
        scores[:, 0] = scores[rows, items] = -torch.inf
        # Sorting what reaches the last place, ties included, is a small part of sorting everything.
        least = scores.topk(min(k, n_items)).values[:, -1:].clamp(min=torch.finfo(scores.dtype).min)
        rows, items = torch.nonzero(scores >= least, as_tuple=True)
        return self._lists(rows, items, scores[rows, items], len(histories), k)

    def _lists(
        self, rows: torch.Tensor, items: torch.Tensor, values: torch.Tensor, n_rows: int, k: int
    ) -> list[tuple[list[str], list[float]]]:
        """The `k` best items of each row, best first, from rows, items and scores [n] in any order."""
        order = np.lexsort((self._ties[items].numpy(), -values.numpy(), rows.numpy()))
        ends = np.cumsum(np.bincount(rows.numpy(), minlength=n_rows))
        lists = [part[:k] for part in np.split(order, ends[:-1])]
        return [([self.item_tokens[item] for item in items[part]], values[part].tolist()) for part in lists]


def _batches(histories: list[list[int]]) -> Iterator[list[int]]:
    """Rows of the histories that hold an item, batch by batch."""
    rows = [row for row, history in enumerate(histories) if history]
    return (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))


def warn_of_unknown(tokens: Iterable[str]) -> None:
    """Warn once of item tokens that are ignored."""
    if some := sorted(set(tokens)):
        logging.getLogger().warning(f"{len(some)} unknown item tokens are ignored, such as {', '.join(some[:3])}")


def write_bundle(run_dir: Path, config: Any, dataset: Any) -> None:
    """Make the folder of a finished run, which holds its weights already, work without the data set.

    `bundle.json` is written last: a folder without it is not a bundle.
    """
    (run_dir / BUNDLE).unlink(missing_ok=True)
    if config["model"] not in registry.MODELS:
        save_stand_in(run_dir / STAND_IN_FILE, dataset)
    catalogue: Catalogue = dataset.catalogue
    if catalogue.features is not None:
        catalogue.features.save(run_dir / FEATURES, {})
    if catalogue.semantic_ids is not None:
        catalogue.semantic_ids.save(run_dir / SEMANTIC_IDS)
        shutil.copyfile(dataset.tokenizer_file, run_dir / TOKENIZER)
    storage.write_json(run_dir / BUNDLE, {**_head(config), "item_tokens": catalogue.tokens})


def _head(config: Any) -> dict[str, Any]:
    return {"format": storage.FORMAT, "version": __version__, "settings": plain_settings(config)}


def keep_bundle(run_dir: Path, config: Any, dataset: Any) -> None:
    """As `write_bundle`; where one of RecBole's models needs its data set, `bundle.json` says so in place of items."""
    write_bundle(run_dir, config, dataset)
    logger = logging.getLogger()
    try:
        bundle = load_bundle(run_dir)
        bundle.recommend([[bundle.item_tokens[1]]], k=1)
        logger.info(f"bundle: recbole_bbqrec.load_bundle({str(run_dir)!r}).recommend([[item tokens]], k=10)")
    except Exception as error:
        (run_dir / BUNDLE).unlink()
        if isinstance(error, NeedsDataError) and config["model"] not in registry.MODELS:
            needs = f"{config['model']} needs its data set ({error}); use load_data_and_model"
            storage.write_json(run_dir / BUNDLE, {**_head(config), "needs": needs})
            logger.warning(f"no bundle: {run_dir}: {needs}")
        else:  # whatever it is, the run is finished and worth its record
            logger.exception(f"no bundle: {config['model']} fails to recommend without its data set")


def runs_of(folder: Path) -> list[str]:
    """Names of the finished runs that share the training in `folder`, where it is not a run itself."""
    runs = sorted(folder.parent.glob(f"{folder.name}-*/{BUNDLE}"))
    return [] if (folder / BUNDLE).is_file() else [found.parent.name for found in runs]


def load_bundle(path: str | Path) -> Bundle:
    """Load the folder that a finished run left (the run's log and record name it).

    Raises
    ------
    InputError : the folder is no bundle, is damaged, or its model cannot work without the data set.
    """
    folder = Path(path)
    try:
        content = json.loads((folder / BUNDLE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        finished = runs_of(folder)
        hint = f"this is a training, finished runs of it are {', '.join(finished)}; " if finished else ""
        if (folder / WEIGHTS).is_file() and not finished:
            hint = "the run is not finished, or its model needs its data set, see load_data_and_model; "
        raise InputError(
            f"{folder / BUNDLE}: {why}; {hint}give the folder of a finished run, such as saved/BBQRec-..."
        ) from error
    if content.get("format") != storage.FORMAT:
        raise InputError(f"{folder / BUNDLE}: format {content.get('format')}, expected {storage.FORMAT}; train again")
    if "needs" in content:
        raise NeedsDataError(f"{folder}: {content['needs']}")
    settings = _Settings(content["settings"], device=torch.device("cpu"))
    features = ItemFeatures.load(folder / FEATURES) if (folder / FEATURES).is_file() else None
    semantic_ids = SemanticIds.load(folder / SEMANTIC_IDS) if (folder / SEMANTIC_IDS).is_file() else None
    return Bundle(folder, settings, Catalogue(content["item_tokens"], features, semantic_ids))
