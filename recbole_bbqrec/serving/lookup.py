"""Items of a bundle, without any history: search by words, similar items, tables.

Shapes: N items (row 0 = padding), H width of vectors.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from ..errors import InputError
from ..model.catalogue import Catalogue
from .best import best
from .calls import number_of, tokens_of
from .items import Items
from .scoring import Scorer
from .search import TitleIndex


class ItemLookup:
    """Looks up items of a catalogue, those of training and added ones.

    Attributes
    ----------
    catalogue : the items, with their features and semantic IDs.
    item_tokens : tokens by item id, `[PAD]` first.
    titles : titles by item id, "" if the data set has none.
    """

    model: Any
    _scorer: Scorer

    def __init__(self, catalogue: Catalogue, items: Items, added: Items) -> None:
        self.catalogue, self.item_tokens = catalogue, catalogue.tokens
        self._ids = {token: index for index, token in enumerate(self.item_tokens) if index}
        self._items, self._added = items, added
        self.titles = items.titles + added.titles

    def item_id(self, token: Any) -> int:
        """Return the row of an item in the catalogue; an unknown token is an `InputError`."""
        (name,) = tokens_of([token], self._ids, "item")
        if name not in self._ids:
            raise InputError(f"item: found {name!r}, expected a known token; find(words) looks items up")
        return self._ids[name]

    def title(self, token: Any) -> str:
        """Return the title of an item, "" if it has none."""
        return self.titles[self.item_id(token)]

    def find(self, words: str, limit: int = 20) -> list[str]:
        """Return tokens of items whose titles have all the words, whole or as beginnings of words.

        If the words are the token of an item, it comes first.
        """
        found = [self.item_tokens[item] for item in self._index.find(words, limit)]
        if (token := words.strip()) in self._ids:
            found = [token, *(item for item in found if item != token)]
        return found[:limit]

    @functools.cached_property
    def _index(self) -> TitleIndex:
        return TitleIndex(self.item_tokens, self.titles)

    def image_file(self, token: Any) -> Path | None:
        """Return the file of an item's image, if it still exists."""
        name = self.item_tokens[self.item_id(token)]
        return self._added.image_file(name) or self._items.image_file(name)

    def shared_codes(self, token: Any, other: Any) -> list[int]:
        """Return the positions at which the semantic IDs of two items have the same code."""
        ids, pair = self.catalogue.semantic_ids, [self.item_id(token), self.item_id(other)]
        if ids is None:
            return []
        one, two = ids.codes[pair]
        return torch.nonzero((one == two) & (one >= 0)).flatten().tolist()

    def similar_items(self, token: Any, k: int = 10) -> list[tuple[str, float]]:
        """Return the `k` items with the largest cosines to the vector of an item, with these; see `vectors`."""
        item, rows = self.item_id(token), self._unit_rows
        cosines = rows @ rows[item]
        cosines[[0, item]] = -torch.inf
        ((items, found),) = best(cosines.unsqueeze(0), number_of(k), self._scorer.settings["seed"])
        return [(self.item_tokens[near], cosine) for near, cosine in zip(items, found, strict=True)]

    @functools.cached_property
    def vectors(self) -> torch.Tensor:
        """The items' vectors in the model, float32 [N, H], row 0 zero.

        They are rows of BBQRec's item table, or item embeddings of RecBole's models, or else features.
        """
        table, n_items = getattr(self._scorer.shared, "rows", None), len(self.item_tokens)
        embedding, content = getattr(self.model, "item_embedding", None), self.catalogue.content
        if table is None and isinstance(embedding, nn.Embedding) and len(embedding.weight) >= n_items:
            table = embedding.weight.detach()[:n_items]
        if table is None and content:
            table = torch.cat([rows * there.unsqueeze(1) for rows, there in content.values()], dim=1)
        if table is None:
            why = f"{type(self.model).__name__} has none; take a model with embeddings or features, such as BBQRec"
            raise InputError(f"item vectors: {why}")
        table = table.float().cpu().clone()
        table[0] = 0.0
        return table

    @functools.cached_property
    def _unit_rows(self) -> torch.Tensor:
        return functional.normalize(self.vectors, dim=-1)

    def item_vectors(self) -> pd.DataFrame:
        """Return a table with a row for each item: title, then its vector, see `vectors`."""
        return self._by_item(self.vectors.numpy(), "v")

    def semantic_ids(self) -> pd.DataFrame:
        """Return a table with a row for each item: title, then its codes (-1 where a signal is missing)."""
        ids = self.catalogue.semantic_ids
        if ids is None:
            raise InputError("semantic IDs: the model was trained without; set --codes=learned")
        return self._by_item(ids.codes.numpy(), "c")

    def item_texts(self) -> pd.DataFrame:
        """Return a table with a row for each item: all columns of the data set's .item file, the title first."""
        items = self._items.joined(self._added)
        frame = pd.DataFrame(items.columns, index=pd.Index(items.tokens, name="item")).iloc[1:]
        return frame[[name for name in (items.title, *frame.columns.drop(items.title, errors="ignore")) if name]]

    def _by_item(self, values: np.ndarray, letter: str) -> pd.DataFrame:
        """Values [N, m] as a table without the padding, columns called by a letter and a number."""
        frame = pd.DataFrame(values[1:], columns=[f"{letter}{at}" for at in range(values.shape[1])])
        frame.insert(0, "title", self.titles[1:])
        return frame.set_index(pd.Index(self.item_tokens[1:], name="item"))
