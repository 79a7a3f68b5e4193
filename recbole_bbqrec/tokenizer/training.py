"""The training loop of stage 1: every objective on every batch, weighed and recorded.

Shapes as in `behavior_bind`; U different items in a batch of windows, Q random items beside them.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from .batches import Windows
from .behavior_bind import BehaviorBind, Bound
from .encoding import Catalogue, all_signals
from .losses import Club, cross_signal_contrast, reconstruction, sequence_to_item_contrast

RESTART_EVERY = 20
"""Steps between two looks for dead codes."""
RESTART_UNTIL = 0.9
"""Share of training after which no code is moved any more, so that the last ones settle."""
GRADIENT_NORM = 1.0


class Schedule(NamedTuple):
    """How training runs; see the parameters of `BehaviorBindTokenizer`."""

    n_steps: int
    n_warmup: int
    batch_size: int
    learning_rate: float
    temperature: float
    weights: dict[str, float]
    progress: bool
    kmeans_start: bool = True
    restart_dead: bool = True


class Batch(NamedTuple):
    """Windows of items [R, T + 1], which of their T targets are real [R, T], and random items [Q]."""

    windows: torch.Tensor
    valid: torch.Tensor
    drawn: torch.Tensor


class Trainer:
    """Trains a `BehaviorBind` network in place.

    Parameters
    ----------
    network, clubs : the network, and one CLUB estimator per modality.
    catalogue, windows : items and training sequences.
    generator : source of every draw but dropout's; on the CPU.
    """

    def __init__(
        self,
        network: BehaviorBind,
        clubs: nn.ModuleList,
        catalogue: Catalogue,
        windows: Windows,
        schedule: Schedule,
        generator: torch.Generator,
    ) -> None:
        self.network, self.clubs = network, clubs
        self.catalogue, self.windows = catalogue, windows
        self.schedule, self.generator = schedule, generator
        self.device = catalogue.known.device
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=schedule.learning_rate, fused=True)
        self.club_optimizer = torch.optim.AdamW(clubs.parameters(), lr=schedule.learning_rate) if len(clubs) else None

    def run(self) -> dict[str, list[float]]:
        """Train for the scheduled steps; returns each loss, averaged over every hundredth part of training."""
        plan = self.schedule
        history: dict[str, list[float]] = {}
        sums: dict[str, float] = {}
        every = max(plan.n_steps // 100, 1)
        batches = self.batches()
        bar = tqdm(range(plan.n_steps), desc="item tokenizer", unit="step", disable=not plan.progress, leave=False)
        for step in bar:
            if step == plan.n_warmup and plan.kmeans_start:
                self.start_codebooks()
            for name, value in self.step(next(batches), step).items():
                sums[name] = sums.get(name, 0.0) + float(value) / every
            if (step + 1) % every == 0:
                for name, value in sums.items():
                    history.setdefault(name, []).append(value)
                bar.set_postfix({name: f"{value:.3f}" for name, value in sums.items()}, refresh=False)
                sums = {}
        self.network.eval()
        return history

    def batches(self) -> Iterator[Batch]:
        """Endless batches, epoch after epoch."""
        n_items, size = self.catalogue.known.shape[1], self.schedule.batch_size
        empty = torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 1, dtype=torch.bool)
        while True:
            epoch = self.windows.epoch(size, self.generator) if self.windows.n_targets else [empty]
            for windows, valid in epoch:
                yield Batch(windows, valid, torch.randint(n_items, (min(size, n_items),), generator=self.generator))

    def step(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        """One step of the network, one of the CLUB estimators, and the upkeep of the codebooks; returns the losses."""
        plan = self.schedule
        rate = plan.learning_rate * learning_rate_factor(step / plan.n_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        losses, bound, pairs = self.losses(batch, quantised=step >= plan.n_warmup)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack([plan.weights[name] * value for name, value in losses.items()]).sum().backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        if self.club_optimizer is not None and pairs:
            self.club_optimizer.zero_grad(set_to_none=True)  # also what `bound` has left there
            torch.stack([club.fit_loss(x, y) for club, x, y in pairs]).sum().backward()
            self.club_optimizer.step()
        if step >= plan.n_warmup:
            restarts = plan.restart_dead and step % RESTART_EVERY == 0 and step < RESTART_UNTIL * plan.n_steps
            self.keep_up(bound, restarts)
        return {name: value.detach() for name, value in losses.items()}

    def keep_up(self, bound: Bound, restart_dead: bool) -> None:
        """Upkeep of the codebooks after a step: usage, moving averages, and dead codes if asked for."""
        quantizer = self.network.quantizer
        codes, inputs = self._by_set(bound.codes), self._by_set(bound.inputs.detach())
        for chain in range(quantizer.sets):
            quantizer.observe(codes[chain], inputs[chain], chain)
            if restart_dead:
                has = (codes[chain] >= 0).all(dim=1)
                quantizer.restart_dead(inputs[chain][has], self.generator, chain=chain)

    def _by_set(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [G, B, ...] of the chains, brought together by the codebooks they share: [C, G / C * B, ...]."""
        return rows.reshape(self.network.quantizer.sets, -1, *rows.shape[2:])

    def losses(self, batch: Batch, quantised: bool = True) -> tuple[dict[str, torch.Tensor], Bound, list]:
        """Every objective on one batch, not weighed.

        Each different item of the windows is encoded once, together with the random items.

        Returns
        -------
        Losses by name; all quantised items; per modality `(club, specific, behaviour)` embeddings to fit CLUB on.
        """
        unique, places = torch.unique(batch.windows, return_inverse=True)
        rows = torch.cat([unique, batch.drawn]).to(self.device)
        features = [matrix[rows] for matrix in self.catalogue.features]
        known = self.catalogue.known[:, rows]
        signals = self.network.signals(features, known, self.network.id_rows(rows))
        bound = (self.network.bind if quantised else self.network.unbound)(signals, known)
        split = len(unique)
        losses = {"commitment": bound.loss}
        has = self.network.chains_known(known)
        losses["sequence_contrast"] = self._sequence_contrast(
            bound.vectors[:, :split], has[:, :split], places.to(self.device), batch.valid.to(self.device)
        )
        losses["cross_contrast"] = cross_signal_contrast(
            bound.vectors[:, split:], has[:, split:], rows[split:], self.schedule.temperature
        )
        item_losses, pairs = self._item_losses(
            [matrix[split:] for matrix in features], known[:, split:], signals[:, split:], bound.vectors[:, split:]
        )
        return {**losses, **item_losses}, bound, pairs

    def _sequence_contrast(
        self, vectors: torch.Tensor, known: torch.Tensor, places: torch.Tensor, valid: torch.Tensor
    ) -> torch.Tensor:
        """Contrast of encoded histories with the next item as a whole and with each of its signals alone.

        The whole item alone would leave it open which signal carries the behaviour; later stages use each by itself.
        """
        whole = vectors.sum(0)  # [U, D]
        encoded = self.network.sequence(functional.embedding(places[:, :-1], whole))[valid]
        targets = places[:, 1:][valid]
        alone = list(zip(vectors, known, strict=True)) if len(vectors) > 1 else []
        terms = []
        for candidate, has in [(whole, known.any(0)), *alone]:
            kept = has[targets]  # an item without the signal is neither target nor negative
            rows = functional.embedding(targets[kept], candidate)
            terms.append(sequence_to_item_contrast(encoded[kept], rows, targets[kept], self.schedule.temperature))
        return torch.stack(terms).mean()

    def _item_losses(
        self, features: list[torch.Tensor], known: torch.Tensor, signals: torch.Tensor, vectors: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], list]:
        """Reconstruction and CLUB, means over the modalities."""
        rebuilt, bounds, pairs = [signals.new_zeros(())], [signals.new_zeros(())], []
        for index, (x, has) in enumerate(zip(features, known, strict=True)):
            specific = self.network.specific[index](x)
            rebuilt.append(reconstruction(self.network.decode(index, specific, vectors), x, has))
            if has.sum() > 1:
                # Signals have unit length; CLUB expects dimensions of about unit variance.
                behavior = signals[index][has] * signals.shape[-1] ** 0.5
                club: Club = self.clubs[index]  # type: ignore[assignment]
                bounds.append(club.bound(specific[has], behavior))
                pairs.append((club, specific[has].detach(), behavior.detach()))
        n_modalities = max(len(features), 1)
        return {
            "reconstruction": torch.stack(rebuilt).sum() / n_modalities,
            "club": torch.stack(bounds).sum() / n_modalities,
        }, pairs

    @torch.no_grad()
    def start_codebooks(self) -> None:
        """Start the codebooks by k-means on what the chains would quantise at the first level."""
        self.network.eval()
        known = self.catalogue.known
        bound = self.network.unbound(all_signals(self.network, self.catalogue), known)
        points, has = self._by_set(bound.vectors), self._by_set(self.network.chains_known(known))
        for chain in range(self.network.quantizer.sets):
            self.network.quantizer.start(points[chain][has[chain]], self.generator, chain)


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


def learning_rate_factor(done: float) -> float:
    """Factor on the learning rate: up over the first 2 % of training, level, and down to zero over the last 40 %."""
    return min(done / 0.02 + 0.05, 1.0, (1.0 - done) / 0.4)
