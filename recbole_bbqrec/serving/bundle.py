"""A finished run without its data set: load its folder and recommend."""

import contextlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.data.interaction import Interaction

from .. import __version__, registry, storage
from ..data.features import ItemFeatures
from ..data.semantic_ids import SemanticIds
from ..errors import InputError
from ..evaluation.ranking import tie_order
from ..model.candidates import candidates_of
from ..settings import plain_settings
from ..training import checkpoint

BUNDLE, WEIGHTS, FEATURES = "bundle.json", "weights.safetensors", "features.safetensors"
SEMANTIC_IDS, TOKENIZER = "semantic_ids.safetensors", "tokenizer.safetensors"
BATCH = 512


class Recommendation(NamedTuple):
    """Items for one history, best first, with their scores; `unknown` are history tokens the model has never met."""

    items: list[str]
    scores: list[float]
    unknown: list[str]


class Catalogue:
    """What a model needs to know of its items where there is no data set; stands in for one in constructors.

    Attributes
    ----------
    item_tokens : tokens by item id, `[PAD]` first.
    item_features, semantic_ids : as on `MultiModalSequentialDataset`.
    train_sequences : none; whatever was measured on them comes with the weights.
    """

    train_sequences = None

    def __init__(self, item_field: str, item_tokens: list[str], features: Any = None, semantic_ids: Any = None) -> None:
        self.iid_field = item_field
        self.item_tokens = item_tokens
        self.item_features: ItemFeatures | None = features
        self.semantic_ids: SemanticIds | None = semantic_ids

    def num(self, field: str) -> int:
        """Number of values of the item field, padding included.

        Raises
        ------
        InputError : any other field; its values are in the data set only.
        """
        if field != self.iid_field:
            raise InputError(f"field {field}: not in a bundle; this model works with its data set only")
        return len(self.item_tokens)


class _Settings(dict[str, Any]):
    """Settings as RecBole's models read them: a missing key is `None`."""

    def __missing__(self, key: str) -> None:
        return None


class Bundle:
    """A trained model with its catalogue.

    Attributes
    ----------
    model : the trained model, in evaluation mode.
    item_tokens : tokens by item id, `[PAD]` first.
    settings : the run's settings.
    """

    def __init__(self, model: Any, catalogue: Catalogue, settings: dict[str, Any]) -> None:
        self.model = model
        self.catalogue = catalogue
        self.settings = settings
        self.item_tokens = catalogue.item_tokens
        self._ids = {token: index for index, token in enumerate(self.item_tokens) if index}

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
            raise InputError(
                "histories: found a string, expected a list of lists of item tokens: [['B0048KGFHU', ...]]"
            )
        unknown = [[token for token in history if token not in self._ids] for history in histories]
        if any(unknown):
            some = sorted({token for tokens in unknown for token in tokens})
            logging.getLogger().warning(f"{len(some)} unknown item tokens are ignored, such as {', '.join(some[:3])}")
        known = [[self._ids[token] for token in history if token in self._ids] for history in histories]
        results = [Recommendation([], [], tokens) for tokens in unknown]
        rows = [index for index, history in enumerate(known) if history]
        kept = (
            self.model.cached_rows() if hasattr(self.model, "cached_rows") else contextlib.nullcontext()
        )  # RecBole's own have none
        with kept:
            for start in range(0, len(rows), BATCH):
                batch = rows[start : start + BATCH]
                found = self._top([known[index] for index in batch], k, exclude_seen)
                for index, (items, scores) in zip(batch, found, strict=True):
                    results[index] = Recommendation(items, scores, unknown[index])
        return results

    @torch.no_grad()
    def _top(self, histories: list[list[int]], k: int, exclude_seen: bool) -> list[tuple[list[str], list[float]]]:
        scores = self._scores(histories, exclude_seen)
        scores[:, 0] = -torch.inf
        if exclude_seen:
            for row, history in enumerate(histories):
                scores[row, history] = -torch.inf
        # Equal scores stand in the ranker's order of ties: a stable sort of columns that are in that order already.
        columns = torch.argsort(tie_order(scores.shape[1], self.settings["seed"]))
        values, places = torch.sort(scores[:, columns], dim=1, descending=True, stable=True)
        results = []
        for row_values, row_items in zip(values[:, :k], columns[places[:, :k]], strict=True):
            kept = torch.isfinite(row_values)
            results.append(([self.item_tokens[item] for item in row_items[kept].tolist()], row_values[kept].tolist()))
        return results

    def _scores(self, histories: list[list[int]], exclude_seen: bool) -> torch.Tensor:
        limit = self.settings["MAX_ITEM_LIST_LENGTH"]
        recent = [history[-limit:] for history in histories]
        # RecBole's models may depend on the padded length, so it is the one they were trained with.
        items = np.zeros((len(recent), limit), np.int64)
        for row, history in enumerate(recent):
            items[row, : len(history)] = history
        lengths = torch.tensor([len(history) for history in recent])
        item_field, suffix = self.catalogue.iid_field, self.settings["LIST_SUFFIX"]
        fields = {item_field + suffix: torch.from_numpy(items), self.settings["ITEM_LIST_LENGTH_FIELD"]: lengths}
        if getattr(self.model, "is_beam_search", False):
            # What has been seen leaves the beam before it is cut, also what stands before the part that is read.
            seen = [(row, item) for row, history in enumerate(histories) for item in history if exclude_seen]
            pairs = torch.tensor(seen, dtype=torch.long).reshape(-1, 2).T
            return self.model.score(torch.from_numpy(items), excluded=(pairs[0], pairs[1])).clone()
        return self.model.full_sort_predict(Interaction(fields)).view(len(items), -1).clone()


def write_bundle(run_dir: Path, config: Any, dataset: Any) -> None:
    """Make the folder of a finished run, which holds its weights already, work without the data set.

    `bundle.json` is written last: a folder without it is not a bundle.
    """
    (run_dir / BUNDLE).unlink(missing_ok=True)
    features, semantic_ids = (getattr(dataset, name, None) for name in ("item_features", "semantic_ids"))
    if features is not None:
        features.save(run_dir / FEATURES, {})
    if semantic_ids is not None:
        semantic_ids.save(run_dir / SEMANTIC_IDS)
        shutil.copyfile(dataset.tokenizer_file, run_dir / TOKENIZER)
    tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field]]
    content = {
        "format": storage.FORMAT,
        "version": __version__,
        "settings": plain_settings(config),
        "item_tokens": tokens,
    }
    storage.write_json(run_dir / BUNDLE, content)


def restore_candidates(folder: Path, model: Any) -> None:
    """Give a model of ours what its run has fitted after training, if anything."""
    candidates = candidates_of(folder)
    if candidates is not None:
        model.candidates = candidates.to(next(model.parameters()).device)


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
    settings = _Settings(content["settings"], device=torch.device("cpu"))
    features = ItemFeatures.load(folder / FEATURES) if (folder / FEATURES).is_file() else None
    semantic_ids = SemanticIds.load(folder / SEMANTIC_IDS) if (folder / SEMANTIC_IDS).is_file() else None
    catalogue = Catalogue(settings["ITEM_ID_FIELD"], content["item_tokens"], features, semantic_ids)
    try:
        model = registry.build_model(settings, catalogue)
    except AttributeError as error:
        raise InputError(
            f"{folder}: {settings['model']} needs its data set ({error}); use load_data_and_model"
        ) from error
    checkpoint.load_weights(folder / WEIGHTS, model)
    restore_candidates(folder, model)
    return Bundle(model.eval(), catalogue, settings)
