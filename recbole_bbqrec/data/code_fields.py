"""Semantic IDs as columns of the items, as RecBole's context-aware models read them: level prefixes, quantised vectors.

Shapes: N items (row 0 = padding), P positions of an ID, S signals, C width of a signal's quantised vectors, M prefixes.
"""

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType

from ..errors import InputError
from ..model.catalogue import SemanticIds

PREFIXES, VECTORS = "prefixes", "vectors"
"""Values of the key `code_fields`."""

VECTOR = "sid_vector_"
"""Prefix of the names of vector columns."""


class Prefix(NamedTuple):
    """The first codes of a signal, one to all of them, that items have in common.

    `ids` [N] number the `tokens` [M], `[PAD]` first: 0 for items that lack the signal, and for the padding row.
    """

    name: str
    ids: torch.Tensor
    tokens: list[str]


def prefixes(ids: SemanticIds, levels: int | None = None) -> list[Prefix]:
    """Return the level prefixes of every signal, named by the positions of their codes: `sid_1`, `sid_1_2`, `sid_3`.

    They end where a prefix tells items apart more than it brings them together, with more values than half the number
    of items that have it: an item's own ID says as much. `levels` is the most codes in a prefix; none: all.

    Raises
    ------
    InputError : no prefix brings items together.
    """
    of_signal = ids.codes.shape[1] // len(ids.signals)
    found = []
    for first in range(0, ids.codes.shape[1], of_signal):
        for end in range(first + 1, first + 1 + min(levels or of_signal, of_signal)):
            codes = ids.codes[:, first:end].cpu().numpy()
            has = (codes >= 0).all(1)
            values, numbers = np.unique(codes[has], axis=0, return_inverse=True)
            if 2 * len(values) > has.sum():
                break
            column = np.zeros(len(codes), np.int64)
            column[has] = 1 + numbers.reshape(-1)
            name = "_".join(["sid", *(str(1 + position) for position in range(first, end))])
            tokens = ["[PAD]", *("-".join(map(str, row)) for row in values.tolist())]
            found.append(Prefix(name, torch.from_numpy(column), tokens))
    if not found:
        raise InputError(
            f"semantic IDs: found a first code for fewer than two of {len(ids.codes) - 1} items each, expected codes "
            "that items share; lower sid_codebook_size"
        )
    return found


def weighted_vectors(ids: SemanticIds) -> dict[str, torch.Tensor]:
    """Return the quantised vectors as columns `sid_vector_<signal>`, pairs [N, C, 2] of a value and its place 1, 2, ...

    RecBole's models have an embedding for each place and take the mean of values times embeddings, over the places that
    are not 0: a linear map of the vector. The values are those of unit vectors times C, so that the mean is as long as
    one embedding, like that of any other field. A missing signal has no place, and zero as its mean.
    """
    found = {}
    for name, rows, has in zip(ids.signals, ids.vectors, ids.present, strict=True):
        values = torch.nn.functional.normalize(rows.float(), dim=-1) * rows.shape[-1]
        places = torch.arange(1, 1 + rows.shape[-1], device=rows.device) * has.unsqueeze(-1)
        found[f"{VECTOR}{name}"] = torch.stack([values * has.unsqueeze(-1), places.float()], dim=-1)
    return found


def attach_code_fields(dataset: Any, ids: SemanticIds, names: Iterable[str], levels: int | None) -> None:
    """Give a RecBole data set the item columns in `names`, which are some of `PREFIXES` and `VECTORS`."""
    names, columns = set(names), {}
    for prefix in prefixes(ids, levels) if PREFIXES in names else ():
        columns[prefix.name] = prefix.ids
        number_tokens(dataset, prefix.name, prefix.tokens)
        dataset.set_field_property(prefix.name, FeatureType.TOKEN, FeatureSource.ITEM, 1)
    vectors = weighted_vectors(ids) if VECTORS in names else {}
    for name, pairs in vectors.items():
        columns[name] = pairs
        dataset.set_field_property(name, FeatureType.FLOAT_SEQ, FeatureSource.ITEM, pairs.shape[1])
        dataset.field2bucketnum[name] = 1 + pairs.shape[1]
    if vectors:  # RecBole's models read only such columns as this setting names; users need not know
        numbers = dict.fromkeys([*dataset.config["numerical_features"], *vectors])
        dataset.config.note("numerical_features", list(numbers))
    add_item_columns(dataset, columns)


def add_item_columns(dataset: Any, columns: dict[str, torch.Tensor]) -> None:
    """Put columns of items, row = item id, beside those that a RecBole data set has."""
    known = {} if dataset.item_feat is None else dict(dataset.item_feat.interaction)
    known.setdefault(dataset.iid_field, torch.arange(dataset.item_num))
    dataset.item_feat = Interaction({**known, **columns})
    dataset.field2source[dataset.iid_field] = FeatureSource.ITEM_ID


def number_tokens(dataset: Any, field: str, tokens: list[str]) -> None:
    """Let a RecBole data set know the tokens of a column by their numbers."""
    dataset.field2id_token[field] = np.array(tokens)
    dataset.field2token_id[field] = dict(zip(tokens, itertools.count()))
