"""Everything known of the items, by item id: tokens, features and semantic IDs.

The one carrier that data sets and bundles hand to models. Each derived form (centred features, numbered codes) is made
here and nowhere else.

Shapes: N items (row 0 = padding), F width of a modality's features, S signals, C width of a signal's quantised vectors,
P positions of an ID, K codes per position.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .. import storage
from ..errors import InputError
from ..tokenizer.fit import Encoded

PADDING = "[PAD]"
"""RecBole's name of item id 0, which is no item."""


class Vectors(NamedTuple):
    """One signal of all items: unit vectors `rows` [N, C], and `present` [N], whether an item has the signal."""

    rows: Tensor
    present: Tensor


@dataclass
class ItemFeatures:
    """Features of N items by modality, rows in the order of `tokens`; rows of items that lack a modality are zero."""

    tokens: list[str]
    matrices: dict[str, Tensor] = field(default_factory=dict)  # float32 [N, F]
    present: dict[str, Tensor] = field(default_factory=dict)  # bool [N], whether the item has it

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in the order they were configured."""
        return list(self.matrices)

    def reindex(self, tokens: Sequence[str]) -> "ItemFeatures":
        """Return the rows of `tokens` in their order; `[PAD]` and unknown tokens get zeros and are not present."""
        row = {token: at for at, token in enumerate(self.tokens) if token != PADDING}
        source = torch.tensor([row.get(token, -1) for token in tokens], dtype=torch.long)
        found = source >= 0
        matrices, present = {}, {}
        for name, matrix in self.matrices.items():
            present[name], matrices[name] = found.clone(), matrix.new_zeros(len(source), matrix.shape[1])
            present[name][found] = self.present[name][source[found]]
            matrices[name][found] = matrix[source[found]]
        return ItemFeatures([str(token) for token in tokens], matrices, present)

    def save(
        self, path: str | os.PathLike, header: Mapping[str, Any], more: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write everything to one file, with a header and `more` tensors of what the features were made of and by."""
        # Tokens are a tensor because a safetensors header is limited in size and a catalogue is not.
        tensors = {"tokens": torch.tensor(list(json.dumps(self.tokens).encode()), dtype=torch.uint8)}
        for name in self.modalities:
            tensors |= {f"matrix.{name}": self.matrices[name], f"present.{name}": self.present[name]}
        storage.save(path, "features", {**tensors, **(more or {})}, {**header, "modalities": self.modalities})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ItemFeatures":
        """Read what `save` wrote."""
        return cls._from_file(path, *storage.load(path, "features"))

    @classmethod
    def _from_file(cls, path: str | os.PathLike, tensors: dict[str, Tensor], header: dict[str, Any]) -> "ItemFeatures":
        try:
            tokens = json.loads(bytes(tensors["tokens"].numpy()))
            matrices = {name: tensors[f"matrix.{name}"] for name in header["modalities"]}
            present = {name: tensors[f"present.{name}"] for name in header["modalities"]}
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: a features file without {error}; delete it and run again") from error
        if any(len(part) != len(tokens) for part in (*matrices.values(), *present.values())):
            raise InputError(f"{path}: its tokens and rows differ in number; delete it and run again")
        return cls(tokens, matrices, present)


@dataclass(frozen=True)
class SemanticIds:
    """Codes and quantised behaviour vectors of all items, row = item id, row 0 = padding."""

    codes: Tensor  # [N, P]; -1 where a signal is missing, and in row 0
    vectors: Tensor  # [S, N, C] of each signal; zero where missing
    present: Tensor  # [S, N] whether the item has the signal
    signals: list[str]  # names of the S signals
    codebook_size: int  # number K of codes at every position

    @property
    def n_code_ids(self) -> int:
        """Number of different values in `code_ids`."""
        return 1 + self.codes.shape[1] * self.codebook_size

    @property
    def code_ids(self) -> Tensor:
        """[N, P] codes numbered over all positions, `1 + position * K + code`; 0, as padding, where there is none."""
        position = torch.arange(self.codes.shape[1], device=self.codes.device) * self.codebook_size
        return torch.where(self.codes >= 0, 1 + position + self.codes, 0)

    @property
    def symbols(self) -> Tensor:
        """[N, P] numbered over all positions, `position * (K + 1) + symbol`; K codes, then "no code", at each."""
        position = torch.arange(self.codes.shape[1], device=self.codes.device) * (self.codebook_size + 1)
        return position + torch.where(self.codes >= 0, self.codes, self.codebook_size)

    def with_identity(self, tokens: Sequence[str], n_codes: int) -> "SemanticIds":
        """The same IDs with `n_codes` identity codes behind them: a hash of the token, so new items have them too.

        Learned codes say what items have in common, and items that have all in common cannot be told apart by them.
        The embeddings of hashed codes add up to one of the item's own, from K rows a position (hash embeddings,
        Svenstrup et al. 2017, arXiv 1709.03933).
        """
        if not n_codes:
            return self
        digests = b"".join(hashlib.shake_128(token.encode()).digest(4 * n_codes) for token in tokens)
        numbers = np.frombuffer(digests, "<u4").reshape(len(tokens), n_codes) % self.codebook_size
        codes = torch.from_numpy(numbers.astype(np.int64)).to(self.codes)
        codes[0] = -1
        return replace(self, codes=torch.cat([self.codes, codes], dim=1))

    def save(self, path: Path) -> None:
        """Write everything to `path`."""
        tensors = {"codes": self.codes, "vectors": self.vectors, "present": self.present}
        storage.save(path, "semantic_ids", tensors, {"signals": self.signals, "codebook_size": self.codebook_size})

    @classmethod
    def load(cls, path: Path) -> "SemanticIds":
        """Read what `save` wrote."""
        tensors, header = storage.load(path, "semantic_ids")
        return cls(**tensors, **header)


@dataclass(frozen=True)
class Catalogue:
    """All items by item id; none for features or codes that are not attached."""

    tokens: list[str]  # `[PAD]` first
    features: ItemFeatures | None = None
    semantic_ids: SemanticIds | None = None
    n_trained: int | None = None  # rows, padding included, that training knows; `grown` adds new items behind them

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities that features describe."""
        return self.features.modalities if self.features is not None else []

    @cached_property
    def content(self) -> dict[str, Vectors]:
        """Features by modality, centred, then of unit length, so that long and short texts count alike.

        The mean over the items that have the modality comes off first: the words that all texts share would make
        everything alike. New items do not move it.
        """
        features, found = self.features or ItemFeatures(self.tokens), {}
        for name, matrix in features.matrices.items():
            present = features.present[name]
            mean = mean_row(matrix[: self.n_trained][present[: self.n_trained]])
            found[name] = Vectors(functional.normalize(matrix - mean, dim=-1), present)
        return found

    @cached_property
    def quantised(self) -> dict[str, Vectors]:
        """Quantised vectors by signal of the semantic IDs, of unit length."""
        ids = self.semantic_ids
        if ids is None:
            return {}
        rows = functional.normalize(ids.vectors, dim=-1)
        return {name: Vectors(*signal) for name, *signal in zip(ids.signals, rows, ids.present, strict=True)}

    def grown(self, new: ItemFeatures, encoded: Encoded | None = None) -> "Catalogue":
        """Return a catalogue with new items behind the known ones, for a model to be built on anew.

        New items lack a modality that is left out, and without IDs from the item tokenizer's `encode` they have no
        codes. It is an `InputError` if a token is known already, or nothing is known of the items.
        """
        twice = set(self.tokens).intersection(new.tokens)
        if twice:
            raise InputError(f"new items: {min(twice)} is in the catalogue already; leave it out")
        if encoded is None and not (self.features is not None and new.matrices):
            raise InputError("new items: found neither codes nor features, expected some; they have no ID embedding")
        n_new, features, ids = len(new.tokens), self.features, self.semantic_ids
        if features is not None:
            matrices, present = {}, {}
            for name, matrix in features.matrices.items():
                rows = new.matrices.get(name, matrix.new_zeros(n_new, matrix.shape[1]))
                has = new.present.get(name, torch.full((n_new,), name in new.matrices))
                matrices[name], present[name] = torch.cat([matrix, rows]), torch.cat([features.present[name], has])
            features = ItemFeatures([*self.tokens, *new.tokens], matrices, present)
        if ids is not None:
            if encoded is None:
                nothing = ids.vectors.new_zeros(len(ids.signals), n_new, ids.vectors.shape[2])
                encoded = Encoded(ids.codes.new_full((n_new, ids.codes.shape[1]), -1), nothing, nothing.any(-1))
            codes = torch.cat([ids.codes, encoded.codes])
            vectors, has = (torch.cat(pair, 1) for pair in zip((ids.vectors, ids.present), encoded[1:], strict=True))
            ids = replace(ids, codes=codes, vectors=vectors, present=has)
        n_trained = len(self.tokens) if self.n_trained is None else self.n_trained
        return Catalogue([*self.tokens, *new.tokens], features, ids, n_trained)


def mean_row(rows: Tensor) -> Tensor:
    """Mean of the rows, to the last bit the same in whatever order they stand; zero where there are none."""
    return rows.sort(dim=0).values.double().sum(0).div(max(len(rows), 1)).to(rows.dtype)
