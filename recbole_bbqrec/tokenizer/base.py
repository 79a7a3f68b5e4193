"""What every item tokenizer shares: the way through `fit`, measured and unique IDs, `encode`, and its file.

Shapes: N items, M modalities, S signals, L levels, K codes per codebook, D code width, P = S * L positions of an ID.
"""

import abc
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from .. import storage
from ..errors import InputError
from . import measures
from .behavior_bind import Bound, Catalogue
from .memory import PeakMemory
from .semantic_ids import check_capacity, resolve_chains
from .training import seeded

KIND = "tokenizer"
ByModality = Mapping[str, torch.Tensor]
"""Modality -> matrix [N, D_m] of features, or -> mask [N] of the items that have it."""
Flat = tuple[np.ndarray, np.ndarray]
"""`(offsets, items)`: sequence u is `items[offsets[u] : offsets[u + 1]]`."""
BLOCK = 2**16
"""Items of a catalogue that are standardised or measured at once."""
COUNTS = ("levels", "codebook_size", "code_dim", "epochs", "steps")
"""Arguments that count something: whole numbers of at least 1."""
LEARNED = (
    *("n_moved_", "collisions_before_", "utilisation_", "perplexity_", "quantisation_error_", "losses_"),
    *("seconds_", "peak_memory_mib_"),
)
"""Plain attributes that `fit` sets and a file keeps."""


class Encoded(NamedTuple):
    """IDs of n items.

    Attributes
    ----------
    codes : [n, P] code at every position, -1 where the signal is missing. An item without any signal has the codes of
        a zero vector in the last signal: they identify it and have no meaning.
    vectors : [S, n, D] quantised vector of each signal; zero where it is missing.
    present : [S, n] whether the item has the signal.
    """

    codes: torch.Tensor
    vectors: torch.Tensor
    present: torch.Tensor


@dataclass(eq=False, kw_only=True)
class ItemTokenizer(abc.ABC):
    """Turns item features and training sequences into one unique semantic ID per item.

    A subclass adds its own arguments, sets `name`, and builds, trains and reads its network.

    Parameters
    ----------
    levels, codebook_size : L codes for each signal, K codes per codebook. K is reduced if there are fewer than K items.
    seed : source of every random draw; the same inputs and seed give the same codes on one machine.
    device, progress : where to compute, and whether to show a progress bar.
    in_order : whether the order of a sequence matters. Otherwise it is a set of items of one user.

    Attributes
    ----------
    codes_, vectors_, present_ : unique IDs of the N items of `fit`; see `Encoded`.
    codebooks_ : [L, K, D], or [P, K, D] if every signal has its own; position p uses `p % len(codebooks_)`.
    signals_ : names of the S signals.
    n_moved_ : items moved to another ID because theirs was taken.
    collisions_before_, utilisation_, perplexity_ : before the moves, the latter two per position; see `measures`.
    quantisation_error_ : share of each signal's squared length that its codes lose, before the moves.
    losses_ : objective -> its mean over every hundredth part of training.
    network_ : the trained network.
    statistics_ : modality -> mean and standard deviation per dimension, [2, D_m].
    seconds_, peak_memory_mib_ : time that `fit` took, and largest growth of the process's resident memory meanwhile;
        `None` if the system cannot tell, see `memory.PeakMemory`. GPU memory is not included.
    """

    name: ClassVar[str]
    levels: int
    codebook_size: int = 256
    seed: int = 0
    device: str = "cpu"
    progress: bool = True
    in_order: bool = True
    _id_map = None  # what predicts the ID signal of new items, where there is one

    @property
    def behaviour(self) -> str:
        """What is learned from the sequences: their `order`, or only `sets` of a user's items."""
        return "order" if self.in_order else "sets"

    def get_params(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def fit(
        self, features: ByModality, present: ByModality, sequences: Sequence[np.ndarray] | Flat, n_items: int
    ) -> "ItemTokenizer":
        """Learn codes for items 0 .. n_items - 1.

        Parameters
        ----------
        features : modality -> [N, D_m]; may be empty if the tokenizer has an ID signal. Rows of missing items are
            ignored.
        present : modality -> mask [N] of the items that have it.
        sequences : training part of every user's sequence, as a list or as `(offsets, items)`. Do not pass held-out
            interactions: all that the codes know of behaviour comes from here.

        Raises
        ------
        InputError : arguments that do not match, or too few codes for N different IDs.
        """
        started, memory = time.perf_counter(), PeakMemory()
        for name, value in self.get_params().items():
            if name in COUNTS and (type(value) is not int or value < 1):
                raise InputError(f"{name}: found {value!r}, expected a whole number of at least 1")
        check_features(features, present, n_items, names=features)
        size = effective_size(self.codebook_size, self.levels, n_items)
        if size != self.codebook_size:
            logging.getLogger().info(f"item tokenizer: {n_items} items, so {size} codes a level")
        flat, device = flat_sequences(sequences, n_items), torch.device(self.device)
        with seeded(self.seed, device):  # initial weights and dropout; everything else draws from a generator
            self.statistics_ = {name: feature_statistics(x, present[name]) for name, x in features.items()}
            self.network_ = self._build(n_items, size).to(device)
            catalogue = self.standardise(features, present, n_items)
            check_capacity(self.network_.chains_known(catalogue.known), self.network_.chains, self.levels, size)
            self.losses_ = self._train(catalogue, flat, torch.Generator().manual_seed(self.seed))
        self.network_.eval().requires_grad_(False)
        self._learn_codes(catalogue)
        self.seconds_ = time.perf_counter() - started
        self.peak_memory_mib_ = memory.growth_mib
        return self

    def encode(
        self,
        features: ByModality,
        present: ByModality,
        unique: bool = False,
        taken: torch.Tensor | None = None,
    ) -> Encoded:
        """Give IDs to new items, from their features alone.

        They have no row in the item table. Their ID signal, if there is one, is predicted from their behaviour
        embeddings by a ridge regression over the known items. For an item without any modality it is about the mean ID
        signal. Two new items, or a new and a known one, may share an ID. If `unique`, new items take the nearest free
        IDs, as in `fit`; known items keep theirs, and so do earlier new ones, whose codes [n, P] are `taken`.
        """
        self._require_fit()
        if not self.statistics_:
            raise InputError("encode: this tokenizer was fitted without features; new items have nothing to encode")
        n_items = len(next(iter(features.values()), ()))
        check_features(features, present, n_items, names=self.statistics_)
        catalogue = self.standardise(features, present, n_items)
        bound, has = self._bind(catalogue, new=True), self.network_.chains_known(catalogue.known).cpu()
        codes, vectors = torch.cat(list(bound.codes), dim=1).cpu(), bound.vectors.cpu()
        if unique:
            # A known item stands exactly where its ID is, so that it is the nearest of those that share it.
            known = self.codes_ if taken is None else torch.cat([self.codes_, taken])
            inputs = torch.cat([self._lookup(known), bound.inputs.cpu()], dim=1)
            codes = resolve_chains(torch.cat([known, codes]), inputs, self.codebooks_)[0][len(known) :]
            vectors = self._lookup(codes).masked_fill(~has.unsqueeze(-1), 0.0)
        return Encoded(codes, vectors, has)

    def save(self, path: str | os.PathLike) -> None:
        """Write the fitted tokenizer to `path` in one atomic step; `registry.load` reads it."""
        self._require_fit()
        tensors = {f"network.{name}": value for name, value in self.network_.state_dict().items()}
        tensors |= {f"statistics.{name}": value for name, value in self.statistics_.items()}
        tensors |= {"codes": self.codes_, "present": self.present_}
        tensors |= {} if self._id_map is None else {"id_map": self._id_map}
        state = {
            "tokenizer": self.name,
            "parameters": self.get_params(),
            "learned": {name: getattr(self, name) for name in LEARNED},
            # A list of pairs: JSON objects are written with sorted keys, and the order of the modalities matters.
            "widths": [(name, value.shape[1]) for name, value in self.statistics_.items()],
        }
        storage.save(path, KIND, tensors, state)

    @classmethod
    def restore(cls, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> "ItemTokenizer":
        """Return the tokenizer of a file, on the CPU; arguments that this version does not have are passed over."""
        given = {**state["parameters"], "device": "cpu"}
        fitted = cls(**{field.name: given[field.name] for field in fields(cls) if field.name in given})
        for name, value in state["learned"].items():
            setattr(fitted, name, value)
        fitted.statistics_ = {name: tensors[f"statistics.{name}"] for name, _ in state["widths"]}
        fitted.codes_, fitted.present_, fitted._id_map = tensors["codes"], tensors["present"], tensors.get("id_map")
        with torch.random.fork_rng(devices=[]):  # building draws initial weights, soon overwritten
            fitted.network_ = fitted._build(len(fitted.codes_), tensors["network.quantizer.codebooks"].shape[1])
        weights = {name.removeprefix("network."): x for name, x in tensors.items() if name.startswith("network.")}
        fitted.network_.load_state_dict(weights)
        fitted.network_.eval().requires_grad_(False)
        fitted._publish()
        return fitted

    def standardise(self, features: ByModality, present: ByModality, n_items: int) -> Catalogue:
        """Features as the network reads them, on its device; missing rows become zero, the mean."""
        device = self.network_.quantizer.codebooks.device
        matrices, known = [], [torch.zeros(0, n_items, dtype=torch.bool)]
        for name, (mean, deviation) in self.statistics_.items():
            has = present[name].bool()
            matrix = torch.empty(n_items, len(mean), device=device)
            for to, rows, kept in zip(*(part.split(BLOCK) for part in (matrix, features[name], has)), strict=True):
                to.copy_(((rows.float() - mean) / deviation).masked_fill(~kept.unsqueeze(1), 0.0))
            matrices.append(matrix)
            known.append(has.unsqueeze(0))
        return Catalogue(matrices, torch.cat(known).to(device))

    @abc.abstractmethod
    def _build(self, n_items: int, size: int) -> Any:
        """Make the untrained network for features of `statistics_`, with K = `size`; refuses what cannot work.

        A module with a `quantizer`, with names of its `chains` of codes, and with `chains_known`: which chains [G, B]
        an item has, from the modalities it has [M, B].
        """

    @abc.abstractmethod
    def _train(self, catalogue: Catalogue, sequences: Flat, generator: torch.Generator) -> dict[str, list[float]]:
        """Train the network; returns `losses_`."""

    @abc.abstractmethod
    def _bind(self, catalogue: Catalogue, new: bool) -> Bound:
        """Codes from the trained network, collisions and all: of the items of `fit`, or of new ones."""

    def _learn_codes(self, catalogue: Catalogue) -> None:
        """Codes of all items from the trained network, measured, then made unique."""
        network, bound = self.network_, self._bind(catalogue, new=False)
        network.cpu()
        raw, codebooks = torch.cat(list(bound.codes), dim=1).cpu(), network.quantizer.codebooks
        self.collisions_before_ = measures.collisions(raw)
        self.utilisation_, self.perplexity_ = measures.code_use(raw, codebooks.shape[1])
        self.quantisation_error_ = quantisation_error(bound).tolist()
        self.present_ = network.chains_known(catalogue.known).cpu()
        self.codes_, self.n_moved_ = resolve_chains(raw, bound.inputs.cpu(), codebooks)
        self._publish()

    def _publish(self) -> None:
        """Attributes that follow from the network and the codes."""
        self.vectors_ = self._lookup(self.codes_).masked_fill(~self.present_.unsqueeze(-1), 0.0)
        self.signals_, self.codebooks_ = self.network_.chains, self.network_.quantizer.codebooks.detach()

    def _lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Vectors [S, n, D] that codes [n, P] stand for."""
        chains = enumerate(codes.split(self.levels, dim=1))
        return torch.stack([self.network_.quantizer.lookup(part, chain) for chain, part in chains])

    def _require_fit(self) -> None:
        if not hasattr(self, "codes_"):
            raise InputError("item tokenizer: not fitted yet; call fit first, or registry.load")


def check_features(features: ByModality, present: ByModality, n_items: int, names: Iterable[str]) -> None:
    """Check that every modality of `names` has a finite matrix [n_items, D_m] and a mask [n_items]."""
    for what, given in (("features", features), ("present", present)):
        if set(given) != set(names):
            raise InputError(f"{what}: found modalities {sorted(given)}, expected {sorted(names)}")
    for name in names:
        matrix, mask = features[name], present[name]
        if matrix.ndim != 2 or len(matrix) != n_items or not matrix.shape[1]:
            raise InputError(f"features {name}: found shape {list(matrix.shape)}, expected [{n_items}, width]")
        if mask.shape != (n_items,):
            raise InputError(f"present {name}: found shape {list(mask.shape)}, expected [{n_items}]")
        blocks = zip(matrix.split(BLOCK), mask.bool().split(BLOCK), strict=True)
        if not all(bool(torch.isfinite(rows[has]).all()) for rows, has in blocks):
            raise InputError(f"features {name}: found NaN or infinity, expected numbers; mark such items missing")


def feature_statistics(matrix: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation [2, D_m] of the present rows; a dimension that does not vary gets deviation 1."""
    blocks = [(rows, has) for rows, has in zip(matrix.split(BLOCK), present.bool().split(BLOCK), strict=True)]
    n_rows, width = max(int(present.bool().sum()), 1), matrix.shape[1]
    mean = sum((rows[has].double().sum(0) for rows, has in blocks), torch.zeros(width).double()) / n_rows
    squares = ((rows[has].double() - mean).square().sum(0) for rows, has in blocks)
    deviation = (sum(squares, torch.zeros(width).double()) / n_rows).sqrt()
    # What varies by rounding alone does not vary.
    constant = deviation <= 1e-6 * mean.abs() + 1e-12
    return torch.stack([mean, deviation.masked_fill(constant, 1.0)]).float()


def quantisation_error(bound: Bound) -> torch.Tensor:
    """Share [G] of the squared length of each chain's inputs that its codes leave over."""
    blocks = zip(bound.inputs.split(BLOCK, dim=1), bound.vectors.split(BLOCK, dim=1), strict=True)
    sums = [((inputs - vectors).square().sum((1, 2)), inputs.square().sum((1, 2))) for inputs, vectors in blocks]
    left, whole = (torch.stack(part).sum(0) for part in zip(*sums, strict=True))
    return left / whole.clamp(min=1e-12)


def effective_size(codebook_size: int, levels: int, n_items: int) -> int:
    """Codes per codebook: fewer than asked for where there are fewer items, about one for four items then."""
    if n_items >= codebook_size:
        return codebook_size
    # A code for every item would only number them; but one signal alone has to tell all of them apart.
    size = max(n_items // 4, math.ceil(n_items ** (1 / levels)), 1)
    return size + (size**levels < n_items)  # the root may be rounded down


def flat_sequences(sequences: Sequence[np.ndarray] | Flat, n_items: int) -> Flat:
    """Return `(offsets, items)`, int64, from a list of item arrays or from that pair itself; checks that they fit."""
    if not isinstance(sequences, tuple):
        lengths = [len(part) for part in sequences]
        sequences = np.cumsum([0, *lengths]), np.concatenate([np.zeros(0, np.int64), *sequences])
    offsets, items = (np.asarray(part, dtype=np.int64) for part in sequences)
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(items) or (np.diff(offsets) < 0).any():
        raise InputError(f"sequences: expected offsets that rise from 0 to {len(items)}, the number of items in them")
    outside = items[(items < 0) | (items >= n_items)]
    if len(outside):
        raise InputError(f"sequences: found item {outside[0]}, expected 0 to {n_items - 1}; number the items from 0")
    return offsets, items
