"""Stage 1 with an interface like scikit-learn's: `fit` on features and training sequences, then `encode`."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from ..errors import InputError
from .base import Encoded, Flat, ItemTokenizer
from .batches import Windows
from .behavior_bind import CHUNK, MAX_LENGTH, MODES, BehaviorBind, Bound, Catalogue
from .residual_quantizer import ResidualQuantizer
from .training import BATCH_SIZE, Trainer, seeded

__all__ = ["BehaviorBindTokenizer", "Encoded"]

RIDGE = 1.0
"""Penalty of the ID signal's regression; its inputs have unit length and there are as many rows as items."""
RECONSTRUCTION_WEIGHT, COMMITMENT_WEIGHT = 0.1, 1.0
"""Own choice: enough to rebuild the features (docs/semantic-ids.md), while behaviour leads."""


@dataclass(eq=False, kw_only=True)
class BehaviorBindTokenizer(ItemTokenizer):
    """Semantic IDs bound to behaviour (paper: behaviour-semantic alignment and dual-aligned quantisation).

    Signals are the modalities, then `id`; in mode `fused` the only signal is `fused`. `ItemTokenizer` lists further
    arguments and what `fit` learns.

    Parameters
    ----------
    mode : how signals share an ID: `chained`, `concat` or `fused`; see `BehaviorBind`.
    levels, code_dim : L and D.
    use_id : whether items have the ID signal. Without it, collisions are resolved in the last signal that an item has;
        an item without any signal gets a unique number in the last one.
    shared_codebook : one set of L codebooks for all signals, or one for each.
    epochs : passes over the training sequences, but at least `min_steps` batches; more epochs over-fit the item table.
    learning_rate : of AdamW; larger ones (Adagrad 0.4) collapse the codes.
    independence_weight : weight of the variance of the behaviour part that a probe predicts from the specific part;
        0: no probe.
    sequence_contrast_weight, cross_contrast_weight : weights of these objectives, see `losses`; 0 switches them off.

    Examples
    --------
    >>> import numpy as np, torch
    >>> texts, all_have_one = torch.randn(20, 8), torch.ones(20, dtype=torch.bool)
    >>> offsets, items = np.array([0, 3, 6]), np.array([0, 1, 2, 4, 5, 6])  # two histories of three items
    >>> tokenizer = BehaviorBindTokenizer(codebook_size=8, code_dim=4, epochs=1, min_steps=2, seed=1)
    >>> tokenizer = tokenizer.fit({"text": texts}, {"text": all_have_one}, (offsets, items), n_items=20)
    >>> tokenizer.signals_, tokenizer.codes_.shape  # two codes of each signal
    (['text', 'id'], torch.Size([20, 4]))
    """

    name: ClassVar[str] = "behavior_bind"

    levels: int = 2
    mode: str = "chained"
    code_dim: int = 64
    use_id: bool = True
    shared_codebook: bool = True
    epochs: int = 6
    min_steps: int = 300
    learning_rate: float = 3e-3
    independence_weight: float = 0.01
    sequence_contrast_weight: float = 1.0
    cross_contrast_weight: float = 0.1

    def initial_network(self) -> BehaviorBind:
        """The network before training, drawn again from the seed, on the CPU as in `fit`; the card compares with it."""
        with seeded(self.seed, torch.device("cpu")):
            network = self._build(len(self.codes_), self.codebooks_.shape[1])
        return network.eval().requires_grad_(False)

    def _build(self, n_items: int, size: int) -> BehaviorBind:
        if self.mode not in MODES:
            raise InputError(f"mode: found {self.mode!r}, expected one of {', '.join(MODES)}")
        if self.code_dim % 2:
            raise InputError(f"code_dim: found {self.code_dim}, expected an even number")
        if not self.use_id and not self.statistics_:
            raise InputError("use_id: found False and no modality, expected at least one signal; set it to True")
        widths = {name: value.shape[1] for name, value in self.statistics_.items()}
        n_chains = 1 if self.mode == "fused" else len(widths) + self.use_id
        quantizer = ResidualQuantizer(self.levels, size, self.code_dim, 1 if self.shared_codebook else n_chains)
        return BehaviorBind(widths, n_items if self.use_id else 0, quantizer, self.mode)

    def _train(self, catalogue: Catalogue, sequences: Flat, generator: torch.Generator) -> dict[str, list[float]]:
        windows = Windows(*sequences, MAX_LENGTH, self.in_order)
        n_steps = max(self.epochs * -(-windows.n_targets // BATCH_SIZE), self.min_steps, 1)
        weights = {
            "reconstruction": RECONSTRUCTION_WEIGHT,
            "commitment": COMMITMENT_WEIGHT,
            "independence": self.independence_weight,
            "sequence_contrast": self.sequence_contrast_weight,
            "cross_contrast": self.cross_contrast_weight,
        }
        trainer = Trainer(self.network_, catalogue, windows, weights, n_steps, self.learning_rate, generator)
        return trainer.run(self.progress)

    def _bind(self, catalogue: Catalogue, new: bool) -> Bound:
        network = self.network_
        if not new:
            signals = network.all_signals(catalogue)
            self._id_map = _fit_id_map(signals).cpu() if self.use_id else None
        elif self._id_map is None:
            signals = network.signals(*catalogue, None)
        else:  # new items have no row in the table: their ID signal is predicted
            signals = network.signals(*catalogue, self._id_map.new_zeros(catalogue.known.shape[1], self.code_dim))
            signals[-1] = functional.normalize(_regressors(signals) @ self._id_map, dim=-1)
        return network.bind_all(signals, catalogue.known)


def _fit_id_map(signals: torch.Tensor) -> torch.Tensor:
    """Ridge regression [M * D + 1, D] from the behaviour signals of the modalities to the ID signal, [S, N, D]."""
    width = (len(signals) - 1) * signals.shape[-1] + 1
    gram, moments = (signals.new_zeros(width, columns, dtype=torch.float64) for columns in (width, signals.shape[-1]))
    for part in signals.split(CHUNK, dim=1):
        x, y = _regressors(part).double(), part[-1].double()
        gram += x.T @ x
        moments += x.T @ y
    penalty = torch.full((width,), RIDGE, dtype=gram.dtype, device=gram.device)
    penalty[-1] = 1e-6  # the intercept stays free: it is the answer for items without any modality
    return torch.linalg.solve(gram + torch.diag(penalty), moments).float()


def _regressors(signals: torch.Tensor) -> torch.Tensor:
    """Behaviour signals of the modalities side by side, and a one for the intercept [B, M * D + 1]."""
    return functional.pad(signals[:-1].transpose(0, 1).flatten(1), (0, 1), value=1.0)
