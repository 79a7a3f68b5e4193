"""Stage 1 with scikit-learn's manners: `fit` on features and training sequences, then `encode` and `decode`."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from .base import ItemTokenizer
from .batches import Windows
from .behavior_bind import BehaviorBind, Bound
from .encoding import Catalogue, Encoded, all_signals, bind_all, fit_id_map, new_signals
from .inputs import check_parameters
from .losses import Club
from .residual_quantizer import ResidualQuantizer
from .training import Schedule, Trainer, seeded

__all__ = ["BehaviorBindTokenizer", "Encoded"]

OBJECTIVES = ("reconstruction", "club", "sequence_contrast", "cross_contrast", "commitment")
"""Names of the losses; each has its weight among the tokenizer's parameters."""


class BehaviorBindTokenizer(ItemTokenizer):
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
    codebook_update : `gradient`, the behaviour's included, or `ema`; see `ResidualQuantizer`.
    kmeans_start : start the codebooks by k-means; at random otherwise.
    restart_dead : move codes that are not used onto items.
    epochs : passes over the training sequences, but at least `min_steps` batches; more over-fit the item table.
    warmup : share of training before the codebooks start, in which signals pass unquantised.
    batch_size : targets of a batch, and random items beside them.
    learning_rate : of AdamW; larger ones (Adagrad 0.4) collapse the codes.
    *_weight : weights of the objectives; 0 switches one off. See `losses` and `ResidualQuantizer`.
    temperature : of both contrasts.
    sinkhorn : spread items evenly over the codes of the last level while training.
    max_length : longest history the sequence encoder reads.
    seed : source of every random draw; same inputs and seed give the same codes on one machine.
    device, progress : where to compute, and whether to show a bar.
    """

    name: ClassVar[str] = "behavior_bind"
    _network: BehaviorBind

    def __init__(
        self,
        mode: str = "chained",
        levels: int = 2,
        codebook_size: int = 256,
        code_dim: int = 64,
        use_id: bool = True,
        shared_codebook: bool = True,
        codebook_update: str = "gradient",
        kmeans_start: bool = True,
        restart_dead: bool = True,
        epochs: int = 6,
        min_steps: int = 300,
        warmup: float = 0.1,
        batch_size: int = 512,
        learning_rate: float = 3e-3,
        reconstruction_weight: float = 0.1,
        club_weight: float = 3e-6,
        sequence_contrast_weight: float = 1.0,
        cross_contrast_weight: float = 0.1,
        commitment_weight: float = 1.0,
        temperature: float = 0.07,
        sinkhorn: bool = False,
        max_length: int = 20,
        seed: int = 0,
        device: str = "cpu",
        progress: bool = True,
    ) -> None:
        self.mode = mode
        self.levels = levels
        self.codebook_size = codebook_size
        self.code_dim = code_dim
        self.use_id = use_id
        self.shared_codebook = shared_codebook
        self.codebook_update = codebook_update
        self.kmeans_start = kmeans_start
        self.restart_dead = restart_dead
        self.epochs = epochs
        self.min_steps = min_steps
        self.warmup = warmup
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.reconstruction_weight = reconstruction_weight
        self.club_weight = club_weight
        self.sequence_contrast_weight = sequence_contrast_weight
        self.cross_contrast_weight = cross_contrast_weight
        self.commitment_weight = commitment_weight
        self.temperature = temperature
        self.sinkhorn = sinkhorn
        self.max_length = max_length
        self.seed = seed
        self.device = device
        self.progress = progress

    def encode(self, features: Mapping[str, torch.Tensor], present: Mapping[str, torch.Tensor]) -> Encoded:
        """Give IDs to items that were not there at `fit`, from their features alone.

        They have no row in the item table. Their ID signal is predicted from their behaviour embeddings by a ridge
        regression over the known items: about the mean ID signal where an item has no modality at all. Two new items,
        or a new and a known one, may share an ID.
        """
        return super().encode(features, present)

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

    def to_tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the fitted state as tensors and as plain data."""
        tensors, state = super().to_tensors()
        return tensors if self._id_map is None else {**tensors, "id_map": self._id_map}, state

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> "BehaviorBindTokenizer":
        """Return the tokenizer that `to_tensors` described."""
        fitted = cast(BehaviorBindTokenizer, super().from_tensors(tensors, state))
        fitted._id_map = tensors["id_map"] if fitted.use_id else None
        return fitted

    def _check(self, features: Mapping[str, torch.Tensor]) -> None:
        check_parameters(self.get_params())
        if not self.use_id and not features:
            raise InputError("use_id: found False and no modality, expected at least one signal; set it to True")

    def _build(self, n_items: int, size: int) -> BehaviorBind:
        widths = {name: value.shape[1] for name, value in self.statistics_.items()}
        n_chains = 1 if self.mode == "fused" else len(widths) + self.use_id
        quantizer = ResidualQuantizer(
            self.levels,
            size,
            self.code_dim,
            sinkhorn=self.sinkhorn,
            sets=1 if self.shared_codebook else n_chains,
            update=self.codebook_update,
        )
        return BehaviorBind(widths, n_items if self.use_id else 0, quantizer, self.mode, self.max_length)

    def _train(
        self, catalogue: Catalogue, sequences: tuple[np.ndarray, np.ndarray], generator: torch.Generator
    ) -> dict[str, list[float]]:
        device = catalogue.known.device
        clubs = nn.ModuleList(Club(self.code_dim, self.code_dim) for _ in catalogue.features).to(device)
        windows = Windows(*sequences, self.max_length)
        return Trainer(self._network, clubs, catalogue, windows, self._schedule(windows), generator).run()

    def _schedule(self, windows: Windows) -> Schedule:
        n_steps = max(self.epochs * -(-windows.n_targets // self.batch_size), self.min_steps)
        weights = {name: getattr(self, f"{name}_weight") for name in OBJECTIVES}
        return Schedule(
            n_steps=n_steps,
            n_warmup=int(self.warmup * n_steps),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            temperature=self.temperature,
            weights=weights,
            progress=self.progress,
            kmeans_start=self.kmeans_start,
            restart_dead=self.restart_dead,
        )

    def _bind_known(self, catalogue: Catalogue) -> Bound:
        signals = all_signals(self._network, catalogue)
        self._id_map = fit_id_map(signals, catalogue.known).cpu() if self.use_id else None
        return bind_all(self._network, signals, catalogue.known)

    def _bind_new(self, catalogue: Catalogue) -> Bound:
        return bind_all(self._network, new_signals(self._network, catalogue, self._id_map), catalogue.known)
