"""The item table: item representations come from here, from whatever is known of an item.

Shapes: N items (row 0 = padding), P positions of an ID, F width of a modality's features, D width of the ID embedding,
H hidden width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..errors import InputError
from .catalogue import Catalogue


class ItemTable(nn.Module):
    """Sum of an ID embedding, the embeddings of the item's codes, and its projected features.

    Parts that are switched off or unknown are left out. An ID embedding that is narrower than the rows goes through one
    linear map that all items share. In place of a modality that an item lacks, a learned vector is added. On a grown
    catalogue the new items have no ID part, which `id_dropout_prob` prepares for. `projection` makes what turns
    features into H numbers, from the widths F and H.
    """

    def __init__(
        self, config: Any, catalogue: Catalogue, projection: Callable[[int, int], nn.Module] = nn.Linear
    ) -> None:
        super().__init__()
        hidden_size, ids = config["hidden_size"], catalogue.semantic_ids if config["use_code_embedding"] else None
        self.n_items, self.n_trained = len(catalogue.tokens), catalogue.n_trained
        self.modalities = catalogue.modalities if config["use_features"] else []
        self.id_dropout: float = config["id_dropout_prob"]
        width = config["id_dim"] or hidden_size
        self.id_embedding = nn.Embedding(self.n_items, width, padding_idx=0) if config["use_item_id"] else None
        self.id_projection = None  # [D, H]
        if config["use_item_id"] and width != hidden_size:
            # So drawn that rows start as large as those of a table of full width; without a bias, no ID stays zero.
            self.id_projection = nn.Parameter(torch.randn(width, hidden_size) / width**0.5)
        self.code_embedding = nn.Embedding(ids.n_code_ids, hidden_size, padding_idx=0) if ids is not None else None
        # Codes and features have files of their own; a checkpoint holds what training learned.
        self.register_buffer("code_ids", ids.code_ids if ids is not None else None, persistent=False)
        self.projections, self.missing = nn.ModuleDict(), nn.ParameterDict()
        for name in self.modalities:
            rows, present = catalogue.content[name]
            self.register_buffer(f"features_{name}", rows, persistent=False)
            self.register_buffer(f"present_{name}", present, persistent=False)
            self.projections[name] = projection(rows.shape[1], hidden_size)
            self.missing[name] = nn.Parameter(torch.zeros(hidden_size))
        if not (config["use_item_id"] or ids is not None or self.modalities):
            raise InputError(
                "items have no representation: set one of --use_item_id, --use_code_embedding (with codes) and "
                "--use_features (with text_encoder or image_encoder) to True"
            )

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Return the rows [n, H] of item ids [n]; row 0 is zero."""
        parts = []
        if self.id_embedding is not None:
            rows = self.id_embedding(items)
            if self.training and self.id_dropout > 0:
                rows = rows * (torch.rand(len(items), 1, device=items.device) >= self.id_dropout)
            parts.append(rows if self.id_projection is None else rows @ self.id_projection)
        if self.code_embedding is not None:
            parts.append(self.code_embedding(self.get_buffer("code_ids")[items]).sum(dim=-2))
        for name in self.modalities:
            known = self.get_buffer(f"present_{name}")[items].unsqueeze(-1)
            projected = self.projections[name](self.get_buffer(f"features_{name}")[items])
            parts.append(torch.where(known, projected, self.missing[name]))
        return torch.stack(parts).sum(0) * (items != 0).unsqueeze(-1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Take in the ID embeddings of the items that training knew; those of new items are zero."""
        name = f"{prefix}id_embedding.weight"
        if self.n_trained is not None and name in state_dict and len(state_dict[name]) == self.n_trained:
            n_new = self.n_items - self.n_trained
            state_dict[name] = functional.pad(state_dict[name], (0, 0, 0, n_new))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
