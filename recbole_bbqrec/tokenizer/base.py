"""What every item tokenizer shares: the way through `fit`, measured and unique IDs, `encode`, `decode`, and its file.

Shapes: N items, M modalities, S signals, L levels, K codes per codebook, D code width, P = S * L positions of an ID.
"""

import abc
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from .. import storage
from ..errors import InputError
from . import diagnostics
from .behavior_bind import Bound
from .encoding import Catalogue, Encoded
from .inputs import check_features, effective_size, feature_statistics, flat_sequences
from .residual_quantizer import ChainNetwork
from .semantic_ids import resolve_chains
from .training import seeded

KIND = "tokenizer"
LEARNED = (
    "n_moved_",
    "collisions_before_",
    "utilisation_",
    "perplexity_",
    "quantisation_error_",
    "losses_",
    "seconds_",
    "peak_memory_mib_",
)
"""Learned attributes that are plain data."""


class ItemTokenizer(abc.ABC):
    """Item features and training sequences in, one unique semantic ID per item out.

    A tokenizer sets `name`, keeps its constructor's arguments, `levels`, `codebook_size`, `code_dim`, `seed`, `device`
    and `progress` among them, and says how to build, train and read its network.

    Attributes
    ----------
    codes_ : [N, P] unique IDs; -1 where a signal is missing. An item without any signal has codes in the last chain
        all the same: a number to know it by, with no meaning.
    codebooks_ : [L, K, D], or [P, K, D] where every signal has its own: position p has `p % len(codebooks_)`.
    vectors_ : [S, N, D] quantised vector of each signal, the one its codes stand for; zero where missing.
    present_ : [S, N] whether an item has the signal.
    signals_ : names of the S signals.
    n_moved_ : items moved to another ID because theirs was taken.
    collisions_before_ : `sharing`, `distinct` and `largest` before that; see `diagnostics.collisions`.
    utilisation_, perplexity_ : per position, before that.
    quantisation_error_ : share of each signal's squared length that its codes leave over, before that.
    losses_ : objective -> its mean over every hundredth part of training.
    statistics_ : modality -> mean and standard deviation per dimension, [2, D_m].
    seconds_ : time `fit` took.
    peak_memory_mib_ : growth of the process's largest resident memory during `fit`. Zero where the process had held
        more before; memory of a GPU is not in it.
    header_ : what was handed to `save`; only after `load`.
    """

    name: ClassVar[str]

    levels: int
    codebook_size: int
    code_dim: int
    seed: int
    device: str
    progress: bool

    codes_: torch.Tensor
    codebooks_: torch.Tensor
    vectors_: torch.Tensor
    present_: torch.Tensor
    signals_: list[str]
    n_moved_: int
    collisions_before_: dict[str, int]
    utilisation_: list[float]
    perplexity_: list[float]
    quantisation_error_: list[float]
    losses_: dict[str, list[float]]
    statistics_: dict[str, torch.Tensor]
    seconds_: float
    peak_memory_mib_: float
    header_: dict[str, Any]
    _network: ChainNetwork

    def get_params(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {name: value for name, value in vars(self).items() if not name.endswith("_") and name[0] != "_"}

    def fit(
        self,
        features: Mapping[str, torch.Tensor],
        present: Mapping[str, torch.Tensor],
        sequences: Sequence[np.ndarray] | tuple[np.ndarray, np.ndarray],
        n_items: int,
    ) -> "ItemTokenizer":
        """Learn codes for items 0 .. n_items - 1.

        Parameters
        ----------
        features : modality -> [N, D_m]; may be empty where the tokenizer has an ID signal. Rows of missing items do not
            count.
        present : modality -> [N] which items have it.
        sequences : training part of every user's sequence, as a list or as `(offsets, items)`. Nothing else may be in
            them: all behaviour the codes know comes from here.
        n_items : N.

        Raises
        ------
        InputError : arguments that do not fit each other, or too few codes for N different IDs.
        """
        started, memory = time.perf_counter(), _peak_memory_mib()
        self._check(features)
        check_features(features, present, n_items, names=features)
        size = effective_size(self.codebook_size, self.levels, n_items)
        if size != self.codebook_size:
            logging.getLogger().info(f"item tokenizer: {n_items} items, so {size} codes a level")
        flat = flat_sequences(sequences, n_items)
        device = torch.device(self.device)
        with seeded(self.seed, device):  # initial weights and dropout; everything else draws from a generator
            self.statistics_ = {name: feature_statistics(x, present[name]) for name, x in features.items()}
            self._network = self._build(n_items, size).to(device)
            catalogue = self.standardise(features, present, n_items)
            self.losses_ = self._train(catalogue, flat, torch.Generator().manual_seed(self.seed))
        self._network.eval().requires_grad_(False)
        self._learn_codes(catalogue)
        self.seconds_ = time.perf_counter() - started
        self.peak_memory_mib_ = _peak_memory_mib() - memory
        return self

    def encode(self, features: Mapping[str, torch.Tensor], present: Mapping[str, torch.Tensor]) -> Encoded:
        """Give IDs to items that were not there at `fit`, from their features alone.

        Two new items, or a new and a known one, may share an ID.
        """
        self._require_fit()
        if not self.statistics_:
            raise InputError("encode: this tokenizer was fitted without features; new items have nothing to encode")
        n_items = len(next(iter(features.values()), ()))
        check_features(features, present, n_items, names=self.statistics_)
        catalogue = self.standardise(features, present, n_items)
        bound = self._bind_new(catalogue)
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
    def load(cls, path: str | os.PathLike) -> "ItemTokenizer":
        """Read what `save` wrote; on the CPU. `registry.load` reads a file of whichever tokenizer."""
        return cls.from_file(path, *storage.load(path, KIND))

    @classmethod
    def from_file(
        cls, path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]
    ) -> "ItemTokenizer":
        """`from_tensors`, with the file in the error's line.

        Raises
        ------
        InputError : a file of another tokenizer, or one that lacks something.
        """
        found = state.get("tokenizer", "behavior_bind")
        if found != cls.name:
            raise InputError(
                f"{path}: found a {found} tokenizer, expected {cls.name}; tokenizer.registry.load reads it"
            )
        try:
            return cls.from_tensors(tensors, state)
        except (KeyError, RuntimeError, TypeError) as error:
            raise InputError(f"{path}: not a whole tokenizer ({error}); delete it and run again") from error

    def to_tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the fitted state as tensors and as plain data."""
        self._require_fit()
        tensors = {f"network.{name}": value for name, value in self._network.state_dict().items()}
        tensors |= {f"statistics.{name}": value for name, value in self.statistics_.items()}
        tensors |= {"codes": self.codes_, "present": self.present_}
        widths = {name: value.shape[1] for name, value in self.statistics_.items()}
        return tensors, {
            "tokenizer": self.name,
            "parameters": self.get_params(),
            "learned": {name: getattr(self, name) for name in LEARNED},
            # A list of pairs: JSON objects are written with sorted keys, and the order of the modalities matters.
            "widths": list(widths.items()),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> "ItemTokenizer":
        """Return the tokenizer that `to_tensors` described."""
        fitted = cls(**{**state["parameters"], "device": "cpu"})
        for name, value in state["learned"].items():
            setattr(fitted, name, value)
        fitted.header_ = state.get("header", {})
        fitted.statistics_ = {name: tensors[f"statistics.{name}"] for name, _ in state["widths"]}
        fitted.codes_, fitted.present_ = tensors["codes"], tensors["present"]
        with torch.random.fork_rng(devices=[]):  # building draws initial weights, soon overwritten
            fitted._network = fitted._build(len(fitted.codes_), tensors["network.quantizer.codebooks"].shape[1])
        prefix = "network."
        weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        fitted._network.load_state_dict(weights)
        fitted._network.eval().requires_grad_(False)
        fitted._publish()
        return fitted

    def standardise(
        self, features: Mapping[str, torch.Tensor], present: Mapping[str, torch.Tensor], n_items: int
    ) -> Catalogue:
        """Features as the network reads them, on its device; missing rows become zero, the mean."""
        matrices, known = [], [torch.zeros(0, n_items, dtype=torch.bool)]
        for name, (mean, deviation) in self.statistics_.items():
            has = present[name].bool()
            matrices.append(((features[name].float() - mean) / deviation).masked_fill(~has.unsqueeze(1), 0.0))
            known.append(has.unsqueeze(0))
        device = self._network.quantizer.codebooks.device
        return Catalogue([matrix.to(device) for matrix in matrices], torch.cat(known).to(device))

    @abc.abstractmethod
    def _check(self, features: Mapping[str, torch.Tensor]) -> None:
        """Refuse arguments that cannot work."""

    @abc.abstractmethod
    def _build(self, n_items: int, size: int) -> ChainNetwork:
        """Make the untrained network for features of `statistics_`, K being `size`."""

    @abc.abstractmethod
    def _train(
        self, catalogue: Catalogue, sequences: tuple[np.ndarray, np.ndarray], generator: torch.Generator
    ) -> dict[str, list[float]]:
        """Train the network; returns `losses_`."""

    @abc.abstractmethod
    def _bind_known(self, catalogue: Catalogue) -> Bound:
        """Codes of the items of `fit` from the trained network, collisions and all."""

    @abc.abstractmethod
    def _bind_new(self, catalogue: Catalogue) -> Bound:
        """Codes of other items."""

    def _learn_codes(self, catalogue: Catalogue) -> None:
        """Codes of all items from the trained network, measured, then made unique."""
        network, bound = self._network, self._bind_known(catalogue)
        network.cpu()
        raw, size = _side_by_side(bound.codes), network.quantizer.codebooks.shape[1]
        self.collisions_before_ = diagnostics.collisions(raw)
        self.utilisation_, self.perplexity_ = diagnostics.utilisation(raw, size), diagnostics.perplexity(raw, size)
        left = (bound.inputs - bound.vectors).square().sum((1, 2)) / bound.inputs.square().sum((1, 2)).clamp(min=1e-12)
        self.quantisation_error_ = left.tolist()
        self.present_ = network.chains_known(catalogue.known).cpu()
        self.codes_, self.n_moved_ = resolve_chains(raw, bound.inputs.cpu(), network.quantizer.codebooks)
        self._publish()

    def _publish(self) -> None:
        """Attributes that follow from the network and the codes."""
        self.signals_ = self._network.chains
        self.codebooks_ = self._network.quantizer.codebooks.detach()
        self.vectors_ = self._vectors(self.codes_).masked_fill(~self.present_.unsqueeze(-1), 0.0)

    def _vectors(self, codes: torch.Tensor) -> torch.Tensor:
        chains = codes.split(self.levels, dim=1)
        lookup = self._network.quantizer.lookup
        return torch.stack([lookup(chain, index) for index, chain in enumerate(chains)]).detach()

    def _require_fit(self) -> None:
        if not hasattr(self, "codes_"):
            raise InputError("item tokenizer: not fitted yet; call fit or load first")


def _side_by_side(codes: torch.Tensor) -> torch.Tensor:
    """Codes by chain [G, N, L] as IDs [N, P]."""
    return codes.permute(1, 0, 2).flatten(1).cpu()


def _peak_memory_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
