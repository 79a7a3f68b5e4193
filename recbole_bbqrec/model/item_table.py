"""The item table: item representations come from here, so that rows can be appended for new items.

Shapes: N items (row 0 = padding), P positions of an ID, F width of a modality's features, H hidden width.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..errors import InputError
from .signals import mean_row


class ItemTable(nn.Module):
    """Sum of an ID embedding, the embeddings of the item's codes, and its projected features.

    Parts that are not given are left out. An item without a modality is served by a learned vector in its place.

    Parameters
    ----------
    n_items : number N of rows, padding included.
    hidden_size : width H of a row.
    use_id : whether rows have an ID part.
    code_ids : [N, P] code ids (0 = none) or none; `n_code_ids` values.
    features, present : modality -> [N, F] matrix, and [N] whether the item has it.
    id_dropout : how often a row goes without its ID part in training, which is how new items will come.
    projection : makes what turns features of width F into H, from the two widths.
    """

    def __init__(
        self,
        n_items: int,
        hidden_size: int,
        use_id: bool = True,
        code_ids: torch.Tensor | None = None,
        n_code_ids: int = 1,
        features: Mapping[str, torch.Tensor] | None = None,
        present: Mapping[str, torch.Tensor] | None = None,
        id_dropout: float = 0.0,
        projection: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        self.n_items = n_items
        self.modalities = list(features or {})
        self.id_dropout = id_dropout
        self._kept: torch.Tensor | None = None
        self.id_embedding = nn.Embedding(n_items, hidden_size, padding_idx=0) if use_id else None
        self.code_embedding = nn.Embedding(n_code_ids, hidden_size, padding_idx=0) if code_ids is not None else None
        # Codes and features have files of their own; a checkpoint holds what training learned.
        self.register_buffer("code_ids", code_ids, persistent=False)
        self.projections, self.missing = nn.ModuleDict(), nn.ParameterDict()
        for name in self.modalities:
            matrix, known = (features or {})[name], (present or {})[name]
            self.register_buffer(f"present_{name}", known, persistent=False)
            self.register_buffer(f"mean_{name}", mean_row(matrix[known]))
            self.register_buffer(f"features_{name}", self._centred(name, matrix), persistent=False)
            self.projections[name] = projection(matrix.shape[1], hidden_size)
            self.missing[name] = nn.Parameter(torch.zeros(hidden_size))
        if not (use_id or code_ids is not None or self.modalities):
            raise InputError(
                "items have no representation: set one of --use_item_id, --use_code_embedding (with codes) and "
                "--use_features (with text_encoder or image_encoder) to True"
            )

    @classmethod
    def from_dataset(
        cls, config: Any, dataset: Any, n_items: int, projection: Callable[[int, int], nn.Module]
    ) -> "ItemTable":
        """Make it from the settings and from what a data set knows of its items: `semantic_ids`, `item_features`."""
        ids = dataset.semantic_ids if config["use_code_embedding"] else None
        features = dataset.item_features if config["use_features"] else None
        return cls(
            n_items,
            config["hidden_size"],
            use_id=config["use_item_id"],
            code_ids=ids.code_ids if ids is not None else None,
            n_code_ids=ids.n_code_ids if ids is not None else 1,
            features=features.matrices if features is not None else None,
            present=features.present if features is not None else None,
            id_dropout=config["id_dropout_prob"],
            projection=projection,
        )

    def _centred(self, name: str, matrix: torch.Tensor) -> torch.Tensor:
        """Centre over the items known at the start, then unit length: texts of different length count alike."""
        return functional.normalize(matrix - self.get_buffer(f"mean_{name}"), dim=-1)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Return the rows [n, H] of item ids [n]; row 0 is zero."""
        if self._kept is not None:
            return functional.embedding(items, self._kept)
        parts = []
        if self.id_embedding is not None:
            rows = self.id_embedding(items)
            if self.training and self.id_dropout > 0:
                rows = rows * (torch.rand(len(items), 1, device=items.device) >= self.id_dropout)
            parts.append(rows)
        if self.code_embedding is not None:
            parts.append(self.code_embedding(self.get_buffer("code_ids")[items]).sum(dim=-2))
        for name in self.modalities:
            known = self.get_buffer(f"present_{name}")[items].unsqueeze(-1)
            projected = self.projections[name](self.get_buffer(f"features_{name}")[items])
            parts.append(torch.where(known, projected, self.missing[name]))
        return torch.stack(parts).sum(0) * (items != 0).unsqueeze(-1)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Compute all rows once for everything that asks for some within the block; nothing may change them there."""
        with torch.no_grad():
            self._kept = self(torch.arange(self.n_items, device=next(self.parameters()).device))
        try:
            yield
        finally:
            self._kept = None

    @torch.no_grad()
    def append(
        self,
        n_new: int,
        code_ids: torch.Tensor | None = None,
        features: Mapping[str, torch.Tensor] | None = None,
        present: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Add rows for new items, whose ID part is absent.

        Parameters
        ----------
        n_new : number of new items.
        code_ids : [n_new, P] their code ids; none = no codes.
        features, present : as for the constructor; a modality that is left out is missing.

        Returns
        -------
        [n_new] their item ids.
        """
        if self.id_embedding is not None:
            old = self.id_embedding.weight
            zeros = old.new_zeros(n_new, old.shape[1])
            self.id_embedding = nn.Embedding.from_pretrained(torch.cat([old, zeros]), freeze=False, padding_idx=0)
        if self.code_embedding is not None:
            known = self.get_buffer("code_ids")
            added = known.new_zeros(n_new, known.shape[1]) if code_ids is None else code_ids.to(known)
            self.code_ids = torch.cat([known, added])
        for name in self.modalities:
            known, matrix = self.get_buffer(f"present_{name}"), self.get_buffer(f"features_{name}")
            given = (features or {}).get(name)
            new = matrix.new_zeros(n_new, matrix.shape[1]) if given is None else self._centred(name, given.to(matrix))
            has = (
                known.new_full((n_new,), given is not None) if present is None or name not in present else present[name]
            )
            setattr(self, f"features_{name}", torch.cat([matrix, new]))
            setattr(self, f"present_{name}", torch.cat([known, has.to(known) & (given is not None)]))
        new_ids = torch.arange(self.n_items, self.n_items + n_new, device=next(self.parameters()).device)
        self.n_items += n_new
        return new_ids
