"""Stage 1 with scikit-learn's manners: `fit` on features and training sequences, then `encode` and `decode`."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import InputError
from .base import Encoded, ItemTokenizer
from .batches import Windows
from .behavior_bind import MODES, BehaviorBind, Bound
from .encoding import Catalogue, all_signals, bind_all, fit_id_map, new_signals
from .inputs import Flat
from .residual_quantizer import ResidualQuantizer
from .training import BATCH_SIZE, Trainer, seeded

__all__ = ["BehaviorBindTokenizer", "Encoded"]

MAX_LENGTH = 20
"""Longest history the sequence encoder reads: it has to learn which items follow each other, not to rank them."""
RECONSTRUCTION_WEIGHT, COMMITMENT_WEIGHT = 0.1, 1.0
"""Own choice: enough to rebuild the features (error about .1 on Sports), while behaviour leads."""


@dataclass(eq=False)
class BehaviorBindTokenizer(ItemTokenizer[BehaviorBind]):
    """Behaviour-bound semantic IDs (paper: behaviour-semantic alignment and dual-aligned quantisation).

    Shapes: N items, M modalities, S signals (the modalities, then `id`; only `fused` in mode fused), L levels, K codes
    per codebook, D code width, P = S * L positions of an ID. What `fit` learns is listed at `ItemTokenizer`.

    Parameters
    ----------
    mode : how signals share an ID: `chained`, `concat` or `fused`; see `BehaviorBind`.
    levels, codebook_size, code_dim : L, K and D. K shrinks where there are fewer than K items.
    use_id : whether items have the ID signal. Without it, collisions are resolved in the last signal an item has, and
        one that has none at all gets a number in the last chain.
    shared_codebook : one set of L codebooks for all signals, or one for each.
    epochs : passes over the training sequences, but at least `min_steps` batches; more over-fit the item table.
    learning_rate : of AdamW; larger ones (Adagrad 0.4) collapse the codes.
    club_weight, sequence_contrast_weight, cross_contrast_weight : weights of objectives, see `losses`; 0 switches off.
    seed : source of every random draw; same inputs and seed give the same codes on one machine.
    device, progress : where to compute, and whether to show a bar.
    """

    name: ClassVar[str] = "behavior_bind"

    mode: str = "chained"
    levels: int = 2
    codebook_size: int = 256
    code_dim: int = 64
    use_id: bool = True
    shared_codebook: bool = True
    epochs: int = 6
    min_steps: int = 300
    learning_rate: float = 3e-3
    club_weight: float = 3e-6
    sequence_contrast_weight: float = 1.0
    cross_contrast_weight: float = 0.1
    seed: int = 0
    device: str = "cpu"
    progress: bool = True

    def initial_network(self) -> BehaviorBind:
        """The network before training, drawn again from the seed: what the trained one is compared with.

        Initial weights are drawn on the CPU, so that they are the same wherever `fit` ran.
        """
        self._require_fit()
        with seeded(self.seed, torch.device("cpu")):
            network = self._build(len(self.codes_), self.codebooks_.shape[1])
        return network.eval().requires_grad_(False)

    @property
    def network(self) -> BehaviorBind:
        """The trained network."""
        self._require_fit()
        return self._network

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
        return BehaviorBind(widths, n_items if self.use_id else 0, quantizer, self.mode, MAX_LENGTH)

    def _train(self, catalogue: Catalogue, sequences: Flat, generator: torch.Generator) -> dict[str, list[float]]:
        windows = Windows(*sequences, MAX_LENGTH)
        n_steps = max(self.epochs * -(-windows.n_targets // BATCH_SIZE), self.min_steps)
        weights = {
            "reconstruction": RECONSTRUCTION_WEIGHT,
            "commitment": COMMITMENT_WEIGHT,
            "club": self.club_weight,
            "sequence_contrast": self.sequence_contrast_weight,
            "cross_contrast": self.cross_contrast_weight,
        }
        trainer = Trainer(self._network, catalogue, windows, weights, n_steps, self.learning_rate, generator)
        return trainer.run(self.progress)

    def _bind(self, catalogue: Catalogue, new: bool) -> Bound:
        if new:
            signals = new_signals(self._network, catalogue, self._id_map)
        else:
            signals = all_signals(self._network, catalogue)
            self._id_map = fit_id_map(signals, catalogue.known).cpu() if self.use_id else None
        return bind_all(self._network, signals, catalogue.known)
