"""A finished run without its data set: load its folder and recommend."""

import functools
import itertools
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from .. import registry, schema
from ..errors import InputError
from ..model.catalogue import Catalogue, ItemFeatures, SemanticIds
from ..model.protocol import NeedsDataError
from ..second_stage.reasons import Reason
from ..tokenizer.fit import Encoded
from ..training import checkpoint
from . import frames, generations, new_items
from .calls import histories_of, lists_of, number_of, tokens_of
from .dot_product import dot_product
from .folder import FEATURES, ITEMS, SCHEME, SEMANTIC_IDS, STAND_IN_FILE, WEIGHTS, content_of
from .index import FaissIndex
from .items import IMAGES, Items
from .lookup import ItemLookup
from .scoring import Scorer
from .stand_in import StandIn

if TYPE_CHECKING:
    import pandas as pd


class Recommendation(NamedTuple):
    """Items for one history, best first, with their scores; `unknown` are given tokens not in the catalogue."""

    items: list[str]
    scores: list[float]
    unknown: list[str]


class Explained(Recommendation):
    """A `Recommendation`, which unpacks to the same three values, with `reasons`, one for each item."""

    reasons: list[Reason]

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, reasons={self.reasons})"


class _Settings(dict[str, Any]):
    """Settings as RecBole's models read them: a missing key is `None`."""

    def __missing__(self, key: str) -> None:
        return None


class Bundle(ItemLookup):
    """A trained model with its catalogue, to recommend without the data set; `ItemLookup` has the methods on items.

    Attributes
    ----------
    model : the trained model, in evaluation mode.
    settings : the run's settings; `device` is where the bundle computes.
    generation : 0 after training, one more each time that items are added.
    foreign : whether it came from a hub. Folders of images that its files name are not looked into then.
    training : fingerprint of what was trained.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        catalogue: Catalogue,
        items: Items | None = None,
        added: Items | None = None,
        generation: int = 0,
        foreign: bool = False,
        training: str = "",
    ) -> None:
        self.folder, self.settings, self.generation, self.foreign = folder, settings, generation, foreign
        self.training = training
        self.device = torch.device(settings["device"])
        self.model = registry.build_model(settings, StandIn(settings, catalogue, folder / STAND_IN_FILE))
        checkpoint.load_weights(folder / WEIGHTS, self.model)
        self.model.to(self.device)
        self._scorer = Scorer(self.model.eval(), settings, len(catalogue.tokens))
        self.ranker = self._scorer.ranker
        trained = catalogue.tokens[: catalogue.n_trained]
        super().__init__(catalogue, items or Items(trained), added or Items(catalogue.tokens[len(trained) :]))

    def __repr__(self) -> str:
        model, dataset = self.settings["model"], self.settings["dataset"]
        return f"<Bundle of {model} on {dataset}: {len(self.item_tokens) - 1} items, {self.folder}>"

    def use_index(self, kind: str = "faiss") -> "Bundle":
        """Find items with a nearest-neighbour index from now on, see `index`; return the bundle itself.

        The exact search is still used for `allow`, `scores`, and lists that the index cannot fill.

        Raises
        ------
        InputError : the scores are not dot products, the bundle has a second stage, or faiss is not installed.
        """
        if kind != "faiss":
            raise InputError(f"index: found {kind!r}, expected 'faiss'; without an index the search is exact")
        if self.model.second_stage is not None:
            why = f"{self.folder} has a second stage, which reads the scores of all items"
            raise InputError(f"index: {why}; run with --second_stage=off, which does not train again")
        self._scorer.index = FaissIndex(dot_product(self.ranker, "index", self._scorer.shared), self.settings["seed"])
        return self

    def recommend(
        self,
        histories: Iterable[Any],
        k: int | None = 10,
        exclude_seen: bool = True,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        explain: bool = False,
    ) -> list[Recommendation]:
        """Recommend `k` items after each history.

        Item tokens may be given as whole numbers, as tables have them; they are returned as text.

        Parameters
        ----------
        histories : iterables of item tokens in time order, such as a list of lists, or the column that
            `frame.groupby("user_id")["item_id"].apply(list)` makes. The model reads as many of the last items as it was
            trained for.
        k : number of items; fewer are returned only if the catalogue, `allow` or a beam search has no more. `None`
            returns all items of `allow`.
        exclude_seen : leave out every item of the history, also those before the part that the model reads.
        allow : item tokens to choose from: a list for all histories, or a list of lists, one for each history. All of
            them are scored, even those that a beam search would not find.
        deny : item tokens to leave out, in the same form; overrides `allow`.
        explain : also give the main reason for each item, see `explain`: the results are `Explained`.

        Returns
        -------
        One `Recommendation` per history, in order. A history without any known item gets an empty one.

        Raises
        ------
        InputError : an argument has another form.

        Examples
        --------
        >>> from recbole_bbqrec import load_bundle
        >>> bundle = load_bundle(folder)
        >>> [len(found.items) for found in bundle.recommend([["i01", "i02"], ["i03"]], k=5)]
        [5, 5]
        >>> best = bundle.recommend([["i01"]], k=1, allow=["i04", "i05"], deny=["i05"])[0]
        >>> best.items
        ['i04']
        """
        given = histories_of(histories, self._ids)
        if k is None and allow is None:
            raise InputError("k: found None, expected a whole number; None is for all items of `allow`")
        count = len(self.item_tokens) if k is None else number_of(k)
        allowed = None if allow is None else lists_of(allow, self._ids, len(given), "allow")
        denied = None if deny is None else lists_of(deny, self._ids, len(given), "deny")
        results = self.ranked(given, count, exclude_seen, allowed, denied)
        warn_of_unknown((token for result in results for token in result.unknown), self.item_tokens[1])
        return self._explained(given, results) if explain else results

    def ranked(
        self,
        histories: list[list[str]],
        k: int,
        exclude_seen: bool,
        allowed: list[list[str]] | None,
        denied: list[list[str]] | None = None,
    ) -> list[Recommendation]:
        """As `recommend`, from lists of tokens; `allowed` and `denied` hold one list for all histories, or one each."""
        known, unknown = self._known(histories)
        permitted, others = (None, [[]]) if allowed is None else self._known(allowed)
        barred = None if denied is None else self._known(denied)[0]
        results = [Recommendation([], [], own + also) for own, also in zip(unknown, itertools.cycle(others))]
        tokens = self.item_tokens
        for rows in self._scorer.batches(known):
            lists = (_of_rows(each, rows) for each in (permitted, barred))
            found = self._scorer.top([known[row] for row in rows], k, exclude_seen, *lists)
            for row, (items, scores) in zip(rows, found, strict=True):
                results[row] = results[row]._replace(items=[tokens[item] for item in items], scores=scores)
        return results

    def _explained(self, histories: list[list[str]], results: list[Recommendation]) -> list[Recommendation]:
        """The results for histories, with a reason for each item."""
        explained = [Explained(*result) for result in results]
        for result in explained:
            result.reasons = []
        known, items = self._known(histories)[0], self._known([result.items for result in results])[0]
        for rows in self._scorer.batches(known):
            asked = [known[row] for row in rows], [items[row] for row in rows]
            for row, reasons in zip(rows, self._scorer.reasons(*asked, self.item_tokens), strict=True):
                explained[row].reasons = reasons
        return [*explained]

    def scores(self, histories: Iterable[Any], items: Iterable[Any] | None = None) -> np.ndarray:
        """Score items as the next one after each history.

        Parameters
        ----------
        histories : as in `recommend`.
        items : item tokens; `None` for the whole catalogue.

        Returns
        -------
        [B, N - 1] in the order of `item_tokens` without padding, or [B, m] in that of `items`, float32. Minus infinity
        marks items without a score: unknown ones, those that a beam search over the whole catalogue has not found, and
        all items after a history without any known item. `items` are scored exactly, without a search.
        """
        known, unknown = self._known(histories_of(histories, self._ids))
        tokens = self.item_tokens[1:] if items is None else tokens_of(items, self._ids, "items")
        columns = [column for column, token in enumerate(tokens) if token in self._ids]
        candidates = None if items is None else torch.tensor([self._ids[tokens[column]] for column in columns]).long()
        strange = (token for each in (tokens, *unknown) for token in each if token not in self._ids)
        warn_of_unknown(strange, self.item_tokens[1])
        scores = np.full((len(known), len(tokens)), -np.inf, np.float32)
        for rows in self._scorer.batches(known):
            found = self._scorer.score([known[row] for row in rows], candidates).cpu().numpy()
            scores[np.ix_(rows, columns)] = found[:, 1:] if items is None else found
        return scores

    def recommend_frame(self, frame: "pd.DataFrame", k: int = 10, **how: Any) -> "pd.DataFrame":
        """Recommend to the users of a table.

        Parameters
        ----------
        frame : a row for each interaction, with columns of users, items and, optionally, times, named as in the run
            (`user_id`, `item_id`, `timestamp`) or user, item, time. Without times, rows are in order.
        k, how : as in `recommend`.

        Returns
        -------
        A row for each recommended item: user, rank (from 1), item, title, score.
        """
        return frames.recommend_frame(self, frame, k, **how)

    def grown(
        self,
        new: ItemFeatures,
        encoded: Encoded | None = None,
        items: Items | None = None,
        generation: int | None = None,
    ) -> "Bundle":
        """Return a bundle that also scores and reads items that the model was not trained with.

        Parameters
        ----------
        new, encoded : as in `Catalogue.grown`.
        items : titles and texts of all items that training does not know; `None` if the new ones have none.
        generation : number of the items' generation; `None` for this bundle's.

        Raises
        ------
        InputError : too little is known of the items, an ID is taken already, or the model is RecBole's.
        """
        if self.settings["model"] not in registry.MODELS:
            raise InputError(
                f"new items: {self.settings['model']} scores the items that it was trained with, no others"
            )
        if encoded is None and getattr(self.model, "decoder", None) is not None:
            raise InputError("new items: found no codes, expected some; their IDs are what this model decodes")
        added = self._added.joined(Items(new.tokens, folders=self._added.folders)) if items is None else items
        number = self.generation if generation is None else generation
        known = self.catalogue.grown(new, encoded)
        return Bundle(self.folder, self.settings, known, self._items, added, number, self.foreign, self.training)

    def renewed(self) -> "Bundle":
        """Return the newest generation of the folder, on this bundle's device and as cautiously as it was loaded."""
        return _load(self.folder, self.device, self.foreign)

    def add_items(self, given: Any) -> "Bundle":
        """Add new items, without training, as the next generation of the folder.

        Parameters
        ----------
        given : a frame, the path of a file, or a list of mappings, see `new_items.read`.

        Returns
        -------
        A new bundle with these items, of the folder's training if that is another by now. This one does not change.

        Raises
        ------
        InputError : `new_items.read` or `grown` refuses them, or the folder cannot be written. Nothing is changed then.
        """
        with generations.writing(self.folder):
            there = generations.newest(self.folder), content_of(self.folder).get("training", "")
            base = self if there == (self.generation, self.training) else self.renewed()
            return base._next_generation(given)

    def _next_generation(self, given: Any) -> "Bundle":
        new = new_items.read(given, self.settings, self.catalogue, self.folder, self._items.title)
        number, added = self.generation + 1, self._added.joined(new.items)
        place = generations.folder_of(self.folder, number)
        shown = replace(added, folders=(place / IMAGES,))
        grown = self.grown(new.features, new.encoded, shown, number)
        files = {**{name: path for name in self._added.images if (path := self._added.image_file(name))}, **new.images}
        write = functools.partial(new_items.write, known=grown.catalogue, items=added, files=files)
        generations.publish(self.folder, number, self.training, write)
        return grown

    def _known(self, lists: list[list[str]]) -> tuple[list[list[int]], list[list[str]]]:
        """Of each list of tokens the ids of the known ones, and the others."""
        known = [[self._ids[token] for token in tokens if token in self._ids] for tokens in lists]
        return known, [[token for token in tokens if token not in self._ids] for tokens in lists]


def _of_rows(lists: list[list[int]] | None, rows: list[int]) -> list[list[int]] | None:
    """The lists of some histories, given one for all of them, one for each, or none."""
    return lists if lists is None or len(lists) == 1 else [lists[row] for row in rows]


def warn_of_unknown(tokens: Iterable[str], known: str) -> None:
    """Warn once of item tokens that are ignored, beside a `known` one: `12` may be what is left of `0012`."""
    if some := sorted(set(tokens)):
        examples = f"{', '.join(some[:3])}; known ones are like {known}"
        logging.getLogger().warning(f"{len(some)} unknown item tokens are ignored, such as {examples}")


def load_bundle(path: str | Path, device: str | torch.device = "cpu") -> Bundle:
    """Load the folder of a finished run (its log and record name it), with its newest generation of items.

    Parameters
    ----------
    path : the folder, or `hf://org/name[@revision]`, a bundle on the Hugging Face hub.
    device : where to compute, such as `cuda`.

    Raises
    ------
    InputError : the folder is not a bundle, is damaged, or its model needs the data set; the device is not there.
    """
    if not str(path).startswith(SCHEME):
        return _load(Path(path), device)
    from .hub import fetch

    return _load(fetch(str(path)), device, foreign=True)


def _usable(given: Any) -> torch.device:
    """The device that is meant, on which torch can compute here."""
    try:
        device = torch.device(given)
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, TypeError) as error:
        why = str(error).partition("\n")[0].rstrip(".:")
        raise InputError(f"device: {given!r} cannot be used here ({why}); take cpu, or cuda with a GPU") from error
    return device


def _load(folder: Path, device: str | torch.device, foreign: bool = False) -> Bundle:
    """As `load_bundle`, from a folder; `foreign` as in `Bundle`."""

    def safe(found: Items) -> Items:
        """Folders of images that a stranger's file names are not looked into; the bundle's own comes first."""
        return replace(found, folders=found.folders[:1]) if foreign else found

    content = content_of(folder)
    settings = _Settings(content["settings"], device=_usable(device))
    if registry.kind_of(settings["model"]) in schema.INTERACTIONS:
        # No run leaves such a bundle, and some of these models read any file that a setting names.
        raise NeedsDataError(f"{folder}: {settings['model']} needs its data set; use load_data_and_model")
    features = ItemFeatures.load(folder / FEATURES) if (folder / FEATURES).is_file() else None
    semantic_ids = SemanticIds.load(folder / SEMANTIC_IDS) if (folder / SEMANTIC_IDS).is_file() else None
    tokens, training = content["item_tokens"], str(content.get("training", ""))
    known, items = Catalogue(tokens, features, semantic_ids), Items.load(folder / ITEMS, tokens)
    while generation := generations.newest(folder):
        try:
            known, added = new_items.load(generations.folder_of(folder, generation), known)
        except InputError:
            if generations.newest(folder) == generation:
                raise
            continue  # two newer ones came meanwhile, and this one was removed
        return Bundle(folder, settings, known, safe(items), safe(added), generation, foreign, training)
    return Bundle(folder, settings, known, safe(items), foreign=foreign, training=training)
