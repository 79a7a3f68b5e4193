"""The training loop of stage 1: every objective on every batch, weighed and recorded.

Shapes as in `behavior_bind`; U different items in a batch of windows, Q random items beside them.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from .behavior_bind import BehaviorBind, Bound, Catalogue
from .losses import Probe, cross_signal_contrast, info_nce

BATCH_SIZE = 512
"""Targets of a batch, and random items beside them."""
SORT_CHUNK = 50
"""Batches whose windows are sorted by length together: little padding, and still a random mix."""
WARMUP = 0.1
"""Share of training before the codebooks start, in which signals pass unquantised; with .3 more items collided."""
RESTART_EVERY = 20
"""Steps between two looks for dead codes."""
RESTART_UNTIL = 0.9
"""Share of training after which no code is moved any more, so that the last ones settle."""
GRADIENT_NORM = 1.0
PROBE_HIDDEN = 256
"""Width of the probes: twice that of the card's probes, which judge what these let pass."""

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Windows of items [R, T + 1], which of their T targets are real [R, T], and random items [Q]."""
Pairs = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Modality -> specific and behaviour parts of the items that have it, standardised, without gradients."""


class Windows:
    """Windows of flat sequences in which every item but a sequence's first is a target once.

    A window shows at most `length` items; its last target comes one later.
    """

    def __init__(self, offsets: np.ndarray, items: np.ndarray, length: int) -> None:
        spans = [
            (begin, min(length, end - 1 - begin))
            for first, end in itertools.pairwise(offsets.tolist())
            for begin in range(first, end - 1, length)
        ]
        self.items = torch.from_numpy(items)
        self.start, self.size = np.array(spans, dtype=np.int64).reshape(-1, 2).T  # first item and number of targets
        self.n_targets = int(self.size.sum())

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield all windows once, about `batch_size` targets at a time, in random order; one empty batch without any.

        The first two parts of a `Batch`; padding stands at the right.
        """
        if not len(self.start):
            yield torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 1, dtype=torch.bool)
            return
        order = torch.randperm(len(self.start), generator=generator).numpy()
        chunk = (np.cumsum(self.size[order]) - 1) // (batch_size * SORT_CHUNK)
        order = order[np.lexsort((self.size[order], chunk))]
        batch = (np.cumsum(self.size[order]) - 1) // batch_size
        parts = np.split(order, np.flatnonzero(np.diff(batch)) + 1)
        for index in torch.randperm(len(parts), generator=generator).tolist():
            start, size = (torch.from_numpy(part[parts[index]]) for part in (self.start, self.size))
            steps = torch.arange(int(size.max()) + 1)
            places = (start.unsqueeze(1) + torch.minimum(steps, size.unsqueeze(1))).contiguous()
            yield self.items[places], steps[1:] <= size.unsqueeze(1)


@dataclass
class Trainer:
    """Trains a `BehaviorBind` network in place, for `n_steps` batches.

    `weights` has one for each objective of `losses`. All but dropout and initial weights is drawn from `generator`, on
    the CPU.
    """

    network: BehaviorBind
    catalogue: Catalogue
    windows: Windows
    weights: Mapping[str, float]
    n_steps: int
    learning_rate: float
    generator: torch.Generator

    def __post_init__(self) -> None:
        self.n_warmup = int(WARMUP * self.n_steps)
        self.device, dim = self.catalogue.known.device, self.network.quantizer.codebooks.shape[-1]
        self.probes = [Probe(dim, PROBE_HIDDEN).to(self.device) for _ in self.catalogue.features]
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.learning_rate, fused=True)
        self.schedule = learning_rate_schedule(self.optimizer, self.n_steps)
        self.probe_optimizers = [torch.optim.AdamW(one.parameters(), lr=self.learning_rate) for one in self.probes]

    def run(self, progress: bool) -> dict[str, list[float]]:
        """Train for all steps; returns what `run_steps` does."""
        batches = self.batches()

        def step(index: int) -> dict[str, torch.Tensor]:
            if index == self.n_warmup:
                self.start_codebooks()
            return self.step(next(batches), index)

        return run_steps(step, self.n_steps, "item tokenizer", progress)

    def batches(self) -> Iterator[Batch]:
        """Endless batches, epoch after epoch."""
        n_items = self.catalogue.known.shape[1]
        while True:
            for windows, valid in self.windows.epoch(BATCH_SIZE, self.generator):
                drawn = torch.randperm(n_items, generator=self.generator)[:BATCH_SIZE]
                yield windows, valid, drawn

    def step(self, batch: Batch, index: int) -> dict[str, torch.Tensor]:
        """One step of the network, one of the probes, and the upkeep of the codebooks; returns the losses."""
        self.network.train()
        losses, bound, pairs = self.losses(*batch, quantised=index >= self.n_warmup)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack([self.weights[name] * value for name, value in losses.items()]).sum().backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        self.schedule.step()
        for modality, (specific, behavior) in pairs.items():
            self.probe_optimizers[modality].zero_grad(set_to_none=True)  # also what `explained` has left there
            self.probes[modality].fit_loss(specific, behavior).backward()
            self.probe_optimizers[modality].step()
        if index >= self.n_warmup:
            self.network.quantizer.observe(bound.codes)
            if restart_due(index, self.n_steps):
                known = (bound.codes >= 0).all(dim=-1)
                self.network.quantizer.restart_dead(bound.inputs.detach(), known, self.generator, self.optimizer)
        return {name: value.detach() for name, value in losses.items()}

    @torch.no_grad()
    def start_codebooks(self) -> None:
        """Start the codebooks by k-means on what the chains would quantise at the first level."""
        network, known = self.network.eval(), self.catalogue.known
        inputs = network.unbound(network.all_signals(self.catalogue), known).inputs
        network.quantizer.start(inputs, network.chains_known(known), self.generator)

    def losses(
        self, windows: torch.Tensor, valid: torch.Tensor, drawn: torch.Tensor, quantised: bool = True
    ) -> tuple[dict[str, torch.Tensor], Bound, Pairs]:
        """Every objective on one batch, not weighed; all quantised items; what to fit the probes on.

        Each different item of the windows is encoded once, together with the random items.
        """
        unique, places = torch.unique(windows, return_inverse=True)
        rows, split = torch.cat([unique, drawn]).to(self.device), len(unique)
        features, known = self.catalogue.rows(rows)
        signals = self.network.signals(features, known, self.network.id_rows(rows))
        bound = (self.network.bind if quantised else self.network.unbound)(signals, known)
        vectors, has = bound.vectors, self.network.chains_known(known)
        labels = labels_of(rows, bound.codes)
        places, valid = places.to(self.device), valid.to(self.device)
        losses = {
            "commitment": bound.loss,
            "sequence_contrast": self._sequence_contrast(
                vectors[:, :split], has[:, :split], labels[:, :split], places, valid
            ),
            "cross_contrast": cross_signal_contrast(vectors[:, split:], has[:, split:], labels[:, split:]),
        }
        item_losses, pairs = self._item_losses(
            [matrix[split:] for matrix in features], known[:, split:], signals[:, split:]
        )
        return losses | item_losses, bound, pairs

    def _sequence_contrast(
        self,
        vectors: torch.Tensor,
        known: torch.Tensor,
        labels: torch.Tensor,
        places: torch.Tensor,
        valid: torch.Tensor,
    ) -> torch.Tensor:
        """Contrast of encoded histories with the next item as a whole and with each of its signals alone.

        The whole item alone would leave it open which signal carries the behaviour; later stages use each by itself.
        """
        whole = vectors.sum(0)  # [U, D]
        encoded = self.network.sequence(functional.embedding(places[:, :-1], whole))[valid]
        targets = places[:, 1:][valid]
        alike = torch.unique(labels, dim=1, return_inverse=True)[1]  # [U] in all signals
        alone = list(zip(vectors, known, labels, strict=True)) if len(vectors) > 1 else []
        terms = []
        for candidate, has, label in [(whole, known.any(0), alike), *alone]:
            kept = has[targets]  # an item without the signal is neither target nor negative
            rows = functional.embedding(targets[kept], candidate)
            terms.append(info_nce(encoded[kept], rows, label[targets[kept]]))
        return torch.stack(terms).mean()

    def _item_losses(
        self, features: list[torch.Tensor], known: torch.Tensor, signals: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], Pairs]:
        """Reconstruction, by both parts and by the behaviour part alone, and independence; means over the modalities.

        Reconstruction leaves the behaviour parts alone: they would hold more of the features, and more items collide.
        """
        rebuilt, shares, pairs = [signals.new_zeros(())], [signals.new_zeros(())], {}
        for modality, (rows, has) in enumerate(zip(features, known, strict=True)):
            if has.sum() < 2:  # nothing to standardise over
                continue
            x, behavior = rows[has], signals[modality][has]
            specific, explained, decoded = self.network.split(modality, x, behavior.detach())
            rebuilt.append(functional.mse_loss(decoded, x) + functional.mse_loss(explained, x))
            behavior = functional.batch_norm(behavior, None, None, training=True)
            shares.append(self.probes[modality].explained(specific, behavior))
            pairs[modality] = specific.detach(), behavior.detach()
        sums = {"reconstruction": torch.stack(rebuilt).sum(), "independence": torch.stack(shares).sum()}
        return {name: value / max(len(features), 1) for name, value in sums.items()}, pairs


def labels_of(items: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Number items [B] so that in a chain those of one label have the same vector [G, B], from their codes [G, B, L].

    Before the codebooks start, where every code is -1, an item equals itself alone.
    """
    if (codes < 0).all():
        return items.expand(len(codes), -1)
    return torch.stack([torch.unique(chain, dim=0, return_inverse=True)[1] for chain in codes])


def run_steps(
    step: Callable[[int], Mapping[str, torch.Tensor]], n_steps: int, title: str, progress: bool
) -> dict[str, list[float]]:
    """Call `step(index)` for every step; return each loss it names, averaged over every hundredth part of training."""
    every = max(n_steps // 100, 1)
    history: dict[str, list[float]] = {}
    sums: dict[str, float] = {}
    bar = tqdm(range(n_steps), desc=title, unit="step", disable=not progress, leave=False)
    for index in bar:
        for name, value in step(index).items():
            sums[name] = sums.get(name, 0.0) + float(value) / every
        if (index + 1) % every == 0:
            for name, value in sums.items():
                history.setdefault(name, []).append(value)
            bar.set_postfix({name: f"{value:.3f}" for name, value in sums.items()}, refresh=False)
            sums = {}
    return history


def restart_due(index: int, n_steps: int) -> bool:
    """Whether a step looks for dead codes."""
    return index % RESTART_EVERY == 0 and index < RESTART_UNTIL * n_steps


def learning_rate_schedule(optimizer: torch.optim.Optimizer, n_steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Up over the first 2 % of training, level, and down to zero over the last 40 %."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda index: min(index / n_steps / 0.02 + 0.05, 1.0, (1.0 - index / n_steps) / 0.4)
    )


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of the CPU and of `device` within the block, and put them back after it."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach devices that are not ours to touch
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
