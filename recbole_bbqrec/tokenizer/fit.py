"""Stage 1 with scikit-learn's manners: `fit` on features and training sequences, then `encode` and `decode`."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import storage
from ..errors import InputError
from . import diagnostics
from .batches import Windows
from .behavior_bind import BehaviorBind
from .encoding import Catalogue, Encoded, all_signals, bind_all, fit_id_map, new_signals
from .inputs import check_features, check_parameters, effective_size, feature_statistics, flat_sequences
from .losses import Club
from .residual_quantizer import ResidualQuantizer
from .semantic_ids import resolve_collisions
from .training import Schedule, Trainer, seeded

KIND = "tokenizer"
OBJECTIVES = ("reconstruction", "club", "sequence_contrast", "cross_contrast", "commitment")
"""Names of the losses; each has its weight among the tokenizer's parameters."""

LEARNED = ("n_moved_", "collisions_before_", "utilisation_", "perplexity_", "quantisation_error_", "losses_")
"""Learned attributes that are plain data."""


class BehaviorBindTokenizer:
    """Behaviour-bound semantic IDs (paper: behaviour-semantic alignment and dual-aligned quantisation).

    Shapes: N items, M modalities, S signals (the modalities, then `id`; only `fused` in mode fused), L levels, K codes
    per codebook, D code width, P = S * L positions of an ID.

    Parameters
    ----------
    mode : how signals share an ID: `chained`, `concat` or `fused`; see `BehaviorBind`.
    levels, codebook_size, code_dim : L, K and D. K shrinks where there are fewer than K items.
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

    Attributes
    ----------
    codes_ : [N, P] unique IDs; -1 where a signal is missing.
    codebooks_ : [L, K, D].
    vectors_ : [S, N, D] quantised vector of each signal, the one its codes stand for; zero where missing.
    present_ : [S, N] whether an item has the signal.
    signals_ : names of the S signals.
    n_moved_ : items moved to another ID because theirs was taken.
    collisions_before_ : `sharing`, `distinct` and `largest` before that; see `diagnostics.collisions`.
    utilisation_, perplexity_ : per position, before that.
    quantisation_error_ : share of each signal's squared length that its codes leave over, before that.
    losses_ : objective -> its mean over every hundredth part of training.
    statistics_ : modality -> mean and standard deviation per dimension, [2, D_m].
    header_ : what was handed to `save`; only after `load`.
    """

    header_: dict[str, Any]

    def __init__(
        self,
        mode: str = "chained",
        levels: int = 2,
        codebook_size: int = 256,
        code_dim: int = 64,
        epochs: int = 6,
        min_steps: int = 300,
        warmup: float = 0.3,
        batch_size: int = 512,
        learning_rate: float = 3e-3,
        reconstruction_weight: float = 0.1,
        club_weight: float = 0.01,
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

    def get_params(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {name: value for name, value in vars(self).items() if not name.endswith("_") and name[0] != "_"}

    def fit(
        self,
        features: Mapping[str, torch.Tensor],
        present: Mapping[str, torch.Tensor],
        sequences: Sequence[np.ndarray] | tuple[np.ndarray, np.ndarray],
        n_items: int,
    ) -> "BehaviorBindTokenizer":
        """Learn codes for items 0 .. n_items - 1.

        Parameters
        ----------
        features : modality -> [N, D_m]; may be empty (ID only). Rows of missing items do not count.
        present : modality -> [N] which items have it.
        sequences : training part of every user's sequence, as a list or as `(offsets, items)`. Nothing else may be in
            them: all behaviour the codes know comes from here.
        n_items : N.

        Raises
        ------
        InputError : arguments that do not fit each other, or too few codes for N different IDs.
        """
        check_parameters(self.get_params())
        check_features(features, present, n_items, names=features)
        size = effective_size(self.codebook_size, self.levels, n_items)
        if size != self.codebook_size:
            logging.getLogger().info(f"item tokenizer: {n_items} items, so {size} codes a level")
        windows = Windows(*flat_sequences(sequences, n_items), self.max_length)
        device = torch.device(self.device)
        generator = torch.Generator().manual_seed(self.seed)
        with seeded(self.seed, device):  # initial weights and dropout; everything else draws from `generator`
            self.statistics_ = {name: feature_statistics(x, present[name]) for name, x in features.items()}
            self._network = self._build(n_items, size).to(device)
            clubs = nn.ModuleList(Club(self.code_dim, self.code_dim) for _ in features).to(device)
            catalogue = self._catalogue(features, present, n_items)
            trainer = Trainer(self._network, clubs, catalogue, windows, self._schedule(windows), generator)
            self.losses_ = trainer.run()
        self._network.requires_grad_(False)
        self._learn_codes(catalogue)
        return self

    def encode(self, features: Mapping[str, torch.Tensor], present: Mapping[str, torch.Tensor]) -> Encoded:
        """Give IDs to items that were not there at `fit`, from their features alone.

        They have no row in the item table. Their ID signal is predicted from their behaviour embeddings by a ridge
        regression over the known items: about the mean ID signal where an item has no modality at all. Two new items,
        or a new and a known one, may share an ID.
        """
        self._require_fit()
        if not self._network.modalities:
            raise InputError("encode: this tokenizer was fitted without features; new items have nothing to encode")
        n_items = len(next(iter(features.values()), ()))
        check_features(features, present, n_items, names=self._network.modalities)
        catalogue = self._catalogue(features, present, n_items)
        signals = new_signals(self._network, catalogue, self._id_map)
        bound = bind_all(self._network, signals, catalogue.known)
        return Encoded(
            _side_by_side(bound.codes), bound.vectors.cpu(), self._network.chains_known(catalogue.known).cpu()
        )

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the sum [n, D] of the quantised vectors that IDs [n, P] stand for."""
        self._require_fit()
        width, size = self.codes_.shape[1], self.codebooks_.shape[1]
        if codes.ndim != 2 or codes.shape[1] != width or ((codes < -1) | (codes >= size)).any():
            found = f"shape {list(codes.shape)}" + (f", values up to {int(codes.max())}" if codes.numel() else "")
            raise InputError(f"decode: found codes of {found}; expected [n, {width}], values from -1 to {size - 1}")
        return self._vectors(codes).sum(0)

    def save(self, path: str | os.PathLike, header: Mapping[str, Any] | None = None) -> None:
        """Write the fitted tokenizer to `path` in one atomic step; `header` is kept with it as `header_`."""
        tensors, state = self.to_tensors()
        storage.save(path, KIND, tensors, {**state, "header": dict(header or {})})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "BehaviorBindTokenizer":
        """Read what `save` wrote; on the CPU."""
        tensors, state = storage.load(path, KIND)
        try:
            return cls.from_tensors(tensors, state)
        except (KeyError, RuntimeError, TypeError) as error:
            raise InputError(f"{path}: not a whole tokenizer ({error}); delete it and run again") from error

    def to_tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the fitted state as tensors and as plain data."""
        self._require_fit()
        tensors = {f"network.{name}": value for name, value in self._network.state_dict().items()}
        tensors |= {f"statistics.{name}": value for name, value in self.statistics_.items()}
        tensors |= {"codes": self.codes_, "present": self.present_, "id_map": self._id_map}
        learned = {name: getattr(self, name) for name in LEARNED}
        widths = {name: value.shape[1] for name, value in self.statistics_.items()}
        # A list of pairs: JSON objects are written with sorted keys, and the order of the modalities matters.
        return tensors, {"parameters": self.get_params(), "learned": learned, "widths": list(widths.items())}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> "BehaviorBindTokenizer":
        """Return the tokenizer that `to_tensors` described."""
        fitted = cls(**{**state["parameters"], "device": "cpu"})
        for name, value in state["learned"].items():
            setattr(fitted, name, value)
        fitted.header_ = state.get("header", {})
        fitted.statistics_ = {name: tensors[f"statistics.{name}"] for name, _ in state["widths"]}
        fitted.codes_, fitted.present_, fitted._id_map = tensors["codes"], tensors["present"], tensors["id_map"]
        n_items, size = len(tensors["network.item_table"]), tensors["network.quantizer.codebooks"].shape[1]
        with torch.random.fork_rng(devices=[]):  # building draws initial weights, soon overwritten
            fitted._network = fitted._build(n_items, size)
        prefix = "network."
        weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        fitted._network.load_state_dict(weights)
        fitted._network.eval().requires_grad_(False)
        fitted._publish()
        return fitted

    def _build(self, n_items: int, size: int) -> BehaviorBind:
        widths = {name: value.shape[1] for name, value in self.statistics_.items()}
        quantizer = ResidualQuantizer(self.levels, size, self.code_dim, sinkhorn=self.sinkhorn)
        return BehaviorBind(widths, n_items, quantizer, self.mode, self.max_length)

    def _catalogue(
        self, features: Mapping[str, torch.Tensor], present: Mapping[str, torch.Tensor], n_items: int
    ) -> Catalogue:
        """Standardise the features; missing rows become zero, the mean."""
        matrices, known = [], [torch.zeros(0, n_items, dtype=torch.bool)]
        for name, (mean, deviation) in self.statistics_.items():
            has = present[name].bool()
            matrices.append(((features[name].float() - mean) / deviation).masked_fill(~has.unsqueeze(1), 0.0))
            known.append(has.unsqueeze(0))
        device = self._network.item_table.device
        return Catalogue([matrix.to(device) for matrix in matrices], torch.cat(known).to(device))

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
        )

    def _learn_codes(self, catalogue: Catalogue) -> None:
        """Codes of all items from the trained network, measured, then made unique."""
        network = self._network
        signals = all_signals(network, catalogue)
        bound = bind_all(network, signals, catalogue.known)
        self._id_map = fit_id_map(signals, catalogue.known).cpu()
        network.cpu()
        raw, size = _side_by_side(bound.codes), network.quantizer.codebooks.shape[1]
        self.collisions_before_ = diagnostics.collisions(raw)
        self.utilisation_, self.perplexity_ = diagnostics.utilisation(raw, size), diagnostics.perplexity(raw, size)
        left = (bound.inputs - bound.vectors).square().sum((1, 2)) / bound.inputs.square().sum((1, 2)).clamp(min=1e-12)
        self.quantisation_error_ = left.tolist()
        self.present_ = network.chains_known(catalogue.known).cpu()
        self.codes_, self.n_moved_ = resolve_collisions(raw, bound.inputs[-1].cpu(), network.quantizer.codebooks)
        self._publish()

    def _publish(self) -> None:
        """Attributes that follow from the network and the codes."""
        self.signals_ = self._network.chains
        self.codebooks_ = self._network.quantizer.codebooks.detach()
        self.vectors_ = self._vectors(self.codes_)

    def _vectors(self, codes: torch.Tensor) -> torch.Tensor:
        chains = codes.split(self.levels, dim=1)
        return torch.stack([self._network.quantizer.lookup(chain) for chain in chains]).detach()

    def _require_fit(self) -> None:
        if not hasattr(self, "codes_"):
            raise InputError("item tokenizer: not fitted yet; call fit or load first")


def _side_by_side(codes: torch.Tensor) -> torch.Tensor:
    """Codes by chain [G, N, L] as IDs [N, P]."""
    return codes.permute(1, 0, 2).flatten(1).cpu()
