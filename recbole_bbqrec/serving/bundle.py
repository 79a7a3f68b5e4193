"""A finished run without its data set: load its folder and recommend."""

import functools
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import __version__, registry, storage
from ..errors import InputError
from ..evaluation.ranking import tie_order
from ..model.catalogue import Catalogue, ItemFeatures, SemanticIds
from ..model.protocol import NeedsDataError, ranker_of
from ..settings import plain_settings
from ..tokenizer.fit import Encoded
from ..training import checkpoint
from .stand_in import StandIn, save_stand_in

BUNDLE, WEIGHTS, FEATURES = "bundle.json", checkpoint.WEIGHTS_FILE, "features.safetensors"
SEMANTIC_IDS, TOKENIZER = "semantic_ids.safetensors", "tokenizer.safetensors"
STAND_IN_FILE = "stand_in.safetensors"
BATCH = 512


class Recommendation(NamedTuple):
    """Items for one history, best first, with their scores; `unknown` are history tokens the model has never met."""

    items: list[str]
    scores: list[float]
    unknown: list[str]


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

    @functools.cached_property
    def _shared(self) -> Any:
        """What all histories share: a loaded model does not change. Threads that ask first may each compute it."""
        with torch.no_grad():
            return self.ranker.shared()

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

    def recommend(
        self, histories: Sequence[Sequence[str]], k: int = 10, exclude_seen: bool = True
    ) -> list[Recommendation]:
        """Recommend `k` items after each history.

        Parameters
        ----------
        histories : item tokens in time order; the model reads as many of the last ones as it was trained for.
        k : number of items; fewer come back only where the catalogue has no more, or a beam has found no more.
        exclude_seen : leave out every item of the history, also those before the part the model reads.

        Returns
        -------
        One `Recommendation` per history, in order. A history without any known item gets an empty one.
        """
        if k < 1:
            raise InputError(f"k: found {k}, expected at least 1")
        if any(isinstance(history, str) for history in histories):
            expected = "a list of lists of item tokens: [['B0048KGFHU', ...]]"
            raise InputError(f"histories: found a string, expected {expected}")
        unknown = [[token for token in history if token not in self._ids] for history in histories]
        if any(unknown):
            some = sorted({token for tokens in unknown for token in tokens})
            logging.getLogger().warning(f"{len(some)} unknown item tokens are ignored, such as {', '.join(some[:3])}")
        known = [[self._ids[token] for token in history if token in self._ids] for history in histories]
        results = [Recommendation([], [], tokens) for tokens in unknown]
        rows = [index for index, history in enumerate(known) if history]
        with torch.no_grad():
            for start in range(0, len(rows), BATCH):
                batch = rows[start : start + BATCH]
                found = self._top([known[index] for index in batch], k, exclude_seen)
                for index, (items, scores) in zip(batch, found, strict=True):
                    results[index] = Recommendation(items, scores, unknown[index])
        return results

    def _top(self, histories: list[list[int]], k: int, exclude_seen: bool) -> list[tuple[list[str], list[float]]]:
        length = self.settings["MAX_ITEM_LIST_LENGTH"]
        recent = [torch.tensor(history[-length:]) for history in histories]
        pairs = [(row, item) for row, history in enumerate(histories) for item in history if exclude_seen]
        rows, items = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
        # A beam search leaves out what has been seen before it cuts its beam, also what the model does not read.
        padded = torch.nn.utils.rnn.pad_sequence(recent, batch_first=True)
        scores = self.ranker.score(padded, excluded=(rows, items), shared=self._shared).clone()
        scores[:, 0] = scores[rows, items] = -torch.inf
        # Equal scores stand in the ranker's order of ties: a stable sort of columns that are in that order already.
        columns = torch.argsort(tie_order(scores.shape[1], self.settings["seed"]))
        values, places = torch.sort(scores[:, columns], dim=1, descending=True, stable=True)
        rows = zip(values[:, :k], columns[places[:, :k]], torch.isfinite(values[:, :k]), strict=True)
        return [([self.item_tokens[item] for item in items[found]], row[found].tolist()) for row, items, found in rows]


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
        finished = [found.parent.name for found in sorted(folder.parent.glob(f"{folder.name}-*/{BUNDLE}"))]
        hint = f"this is a training, finished runs of it are {', '.join(finished)}; " if finished else ""
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
