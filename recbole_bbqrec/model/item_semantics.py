"""RecBole's own models with items that are more than a number: codes and features in their item tables.

A row of an item table becomes `W = E + mean of code embeddings + projected features`, as a parametrisation of the
table's weight. The class of the model, its losses and its trainer stay RecBole's: whoever reads the weight, whole or
by item id, reads `W`, and gradients reach all its parts. These begin at zero, so the model begins as it is without.
Each is scaled so that a step of Adam, which moves all numbers alike, moves no row by more than it moves an ID.

Shapes: N items (row 0 = padding), P positions of an ID, F width of a modality's features, H width of the table.
"""

import re
from collections.abc import Iterator
from types import MethodType
from typing import Any, NamedTuple

import torch
from recbole.model.layers import FMEmbedding
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from ..errors import InputError
from .catalogue import SemanticIds

CODES, FEATURES = PARTS = ("codes", "features")
"""What may be added to the rows."""

OF_ITEMS = re.compile(r"^(?!.*neigh).*item|^(IU|LI|IL)_emb$")
"""Names that RecBole's models give to tables of items; FPMC has its own, and the neighbours of an item are users."""


class Table(NamedTuple):
    """A weight that holds items: row `first` and the N - 1 after it, or columns where it is `by_column`."""

    owner: nn.Module
    first: int = 0
    by_column: bool = False


class ItemParts(nn.Module):
    """The parametrisation: what codes and features add to the rows of items in a weight.

    Parameters
    ----------
    ids : semantic IDs; none where codes are no part.
    features : rows [N, F] by modality, zero where an item lacks it, the sum of absolute values at most 1.
    width : H.
    first, by_column : where items stand in the weight, see `Table`.
    """

    def __init__(
        self, ids: SemanticIds | None, features: dict[str, Tensor], width: int, first: int, by_column: bool
    ) -> None:
        super().__init__()
        self.first, self.by_column = first, by_column
        # What is known of the items has files of its own; a checkpoint holds what training learned.
        self.register_buffer("code_ids", None if ids is None else ids.code_ids, persistent=False)
        self.codes = None if ids is None else nn.Parameter(torch.zeros(ids.n_code_ids, width))
        self.projections = nn.ParameterDict()
        for name, rows in features.items():
            self.register_buffer(f"features_{name}", rows, persistent=False)
            self.projections[name] = nn.Parameter(torch.zeros(rows.shape[1], width))
        self._kept: tuple[Any, Tensor] | None = None

    def added(self) -> Tensor:
        """What is added to the rows of all items [N, H]; nothing to padding, nor for what an item lacks."""
        found = [self.get_buffer(f"features_{name}") @ weight for name, weight in self.projections.items()]
        if self.codes is not None:
            ids = self.get_buffer("code_ids")
            found.append(functional.embedding_bag(ids, self.codes, mode="sum", padding_idx=0) / ids.shape[1])
        return torch.stack(found).sum(0)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with the parts of its items; without gradients, it is made once for all reads."""
        if torch.is_grad_enabled():
            self._kept = None
            return self._whole(weight)
        state = [(each.data_ptr(), each._version) for each in (weight, *self.parameters())]
        if self._kept is None or self._kept[0] != state:
            self._kept = state, self._whole(weight)
        return self._kept[1]

    def _whole(self, weight: Tensor) -> Tensor:
        added, n_rows = self.added(), weight.shape[int(self.by_column)]
        rows = functional.pad(added, (0, 0, self.first, n_rows - self.first - len(added)))
        return weight + (rows.T if self.by_column else rows)


def add_semantics(model: nn.Module, config: Any, dataset: Any) -> nn.Module:
    """Give the item tables of a model of RecBole the parts that `item_semantics` names, in place; return the model.

    Only this instance changes, and no random number is drawn. Call it before the optimizer is made. `InputError` if the
    model has no item table, or nothing is known of the items.
    """
    parts, catalogue, name = list(config["item_semantics"]), dataset.catalogue, type(model).__name__
    if FEATURES in parts and not catalogue.modalities:
        raise InputError("item_semantics: found features, but items have none; add --text_encoder=tfidf, or drop it")
    if CODES in parts and catalogue.semantic_ids is None:
        raise InputError("item_semantics: found codes, but there are none; drop codes=none, or drop it")
    tables = item_tables(model, config["ITEM_ID_FIELD"], len(catalogue.tokens))
    if not tables:
        raise InputError(f"item_semantics: no embedding or layer of {name} has a row for each item; drop it")
    ids = catalogue.semantic_ids if CODES in parts else None
    content = catalogue.content.items() if FEATURES in parts else ()
    # Of a row of unit length the sum of absolute values is at most the root of its width.
    features = {name: rows * present.unsqueeze(-1) / rows.shape[1] ** 0.5 for name, (rows, present) in content}
    for owner, first, by_column in tables:
        weight: Any = owner.weight
        added = ItemParts(ids, features, weight.shape[int(not by_column)], first, by_column).to(weight.device)
        parametrize.register_parametrization(owner, "weight", added.requires_grad_(weight.requires_grad))
    for loss in (each for each in dir(type(model)) if re.fullmatch(r"calculate_(\w+_)?loss", each)):
        # A bound method, unlike a closure, follows the model through copy.deepcopy.
        setattr(model, loss, MethodType(_Once(loss), model))
    return model


class _Once:
    """Stands in for a loss of RecBole's: within a call each table is made once."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, model: nn.Module, *arguments: Any, **named: Any) -> Any:
        with parametrize.cached():
            return getattr(type(model), self.name)(model, *arguments, **named)


def item_tables(model: nn.Module, item_field: str, n_items: int) -> list[Table]:
    """Find the tables of a model that have a row for each of `n_items` items.

    They are embeddings that its names say are of items, rows of other things behind those of items included; else
    those of entities, among which items come first; else the linear layers that an autoencoder begins and ends with.
    Tables that several columns share count where items are one of them.
    """
    embeddings = [
        (path.rpartition(".")[2], module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings >= n_items
    ]
    by_name = [Table(module) for name, module in embeddings if OF_ITEMS.search(name)]
    entities = [Table(module) for name, module in embeddings if name == "entity_embedding"]
    return by_name + list(_shared_tables(model, item_field)) or entities or _layers(model, n_items)


def _shared_tables(model: nn.Module, item_field: str) -> Iterator[Table]:
    """Tables in which the tokens of several columns stand one after the other, those of items among them."""
    for module in model.modules():
        owner: Any = module
        if not hasattr(owner, "token_embedding_table"):
            continue
        names, tables = owner.token_field_names, owner.token_embedding_table
        of_kinds: list[Any] = [(names, tables)]
        if isinstance(tables, nn.ModuleDict):  # a table for columns of users, one for those of items
            of_kinds = [(names[kind], table) for kind, table in tables.items()]
        for columns, table in of_kinds:
            if isinstance(table, FMEmbedding) and item_field in columns:
                yield Table(table.embedding, int(table.offsets[columns.index(item_field)]))


def _layers(model: nn.Module, n_items: int) -> list[Table]:
    """Layers that read or write all items: their weights have a column or a row for each."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    read = [layer for layer in layers if layer.in_features == n_items]
    written = [layer for layer in layers if layer.out_features == n_items]
    for found in (read, written):
        learns = [layer for layer in found if layer.weight.requires_grad]  # RecVAE keeps a copy of its encoder
        if len(learns) > 1 or set(read) & set(written):
            what = f"{type(model).__name__} has other layers of {n_items} units, as many as items with padding"
            raise InputError(f"item_semantics: {what}; change the sizes of its layers")
    return [Table(layer, by_column=True) for layer in read] + [Table(layer) for layer in written]
