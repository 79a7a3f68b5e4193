"""RecBole's KGAT on the Python stack of today: its graph without DGL, and attention that follows the weights."""

from typing import Any

import numpy as np
import torch
from recbole.model.knowledge_aware_recommender import KGAT as RecBoleKGAT
from scipy.sparse import coo_matrix


class _WithoutDGL:
    """A data set that answers with scipy's matrix where RecBole asks for a graph of DGL, which has no current wheel."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def ckg_graph(self, form: str = "coo", value_field: str | None = None) -> Any:
        return self._dataset.ckg_graph("coo" if form == "dgl" else form, value_field)


class KGAT(RecBoleKGAT):
    """RecBole's `KGAT`: the same model, loss and scores.

    RecBole recomputes attention from the weights at the end of every epoch, but does not save it with them. Here
    weights that are loaded get their own attention back: the best ones are ranked with it, and training goes on with
    it.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, _WithoutDGL(dataset))
        self.register_load_state_dict_post_hook(lambda *_: self._follow_weights())

    def init_graph(self) -> torch.Tensor:
        """Attention before training [E, E] over users and entities: a node's edges of a relation share 1."""
        heads, relations, tails = self.ckg.row, self.ckg.data, self.ckg.col
        _, group, sizes = np.unique(
            np.stack([heads, relations]), axis=1, return_inverse=True, return_counts=True
        )  # edges of a node by one relation
        weights = 1 / sizes[group.reshape(-1)]
        summed = coo_matrix((weights, (heads, tails)), self.matrix_size).tocsr().tocoo()
        indices = torch.from_numpy(np.stack([summed.row, summed.col]).astype(np.int64))
        values = torch.from_numpy(summed.data.astype(np.float32))
        return torch.sparse_coo_tensor(indices, values, self.matrix_size).to(self.device)

    @torch.no_grad()
    def _follow_weights(self) -> None:
        self.restore_user_e, self.restore_entity_e = None, None
        self.update_attentive_A()
