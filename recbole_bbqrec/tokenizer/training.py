"""The training loop of stage 1: every objective, weighed and recorded.

Shapes as in `behavior_bind`; U different items in a batch, in its windows or among its Q random ones.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from .batches import Batch, Windows, batches, some
from .behavior_bind import BehaviorBind, Bound, Catalogue
from .losses import Probe, cross_signal_contrast, info_nce, kept
from .residual_quantizer import N_START_POINTS
from .row_adam import RowAdam

BATCH_SIZE, DRAWN = 512, 256
"""Targets of a batch, and random items beside them."""
WARMUP = 0.1
"""Share of training before the codebooks start, in which signals pass unquantised; with .3 more items collided."""
RESTART_EVERY = 20
"""Steps between two looks for dead codes."""
RESTART_UNTIL = 0.9
"""Share of training after which no code is moved any more, so that the last ones settle."""
GRADIENT_NORM = 1.0
PROBE_HIDDEN = 256
"""Width of the probes: twice that of the card's probes, which judge what these let pass."""
ITEM_STEPS, MOST_APART = 500, 2
"""Fewest steps with random items in a training that is long enough, and most steps from one to the next. They cost
most; with them in every fourth step only, a fresh probe found seven times as much of z_B in z_S (Sports)."""
OF_DRAWN = ("cross_contrast", "reconstruction", "independence")
"""Objectives of the random items; they weigh as much more as they come more rarely."""

Pairs = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Modality -> specific and behaviour parts of the items that have it, standardised, without gradients."""


@dataclass
class Trainer:
    """Trains a `BehaviorBind` network in place, for `n_steps` batches.

    `weights` has one for each objective of `losses`. All but dropout and initial weights is drawn from `generator`, on
    the CPU, where batches are made and masks are counted: a step waits for no other device.
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
        self.every = min(max(self.n_steps // ITEM_STEPS, 1), MOST_APART) if self.windows.n_targets else 1
        self.device, dim = self.catalogue.known.device, self.network.quantizer.codebooks.shape[-1]
        self.known = self.catalogue.known.cpu()
        self.probes = [Probe(dim, PROBE_HIDDEN).to(self.device) for _ in self.catalogue.features]
        self.table = RowAdam(self.network.item_table) if self.network.item_table is not None else None
        self.parameters = [one for one in self.network.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.learning_rate, fused=True)
        self.schedule = learning_rate_schedule(self.optimizer, self.n_steps)
        self.probe_optimizers = [
            torch.optim.AdamW(one.parameters(), lr=self.learning_rate, fused=True) for one in self.probes
        ]

    def run(self, progress: bool) -> dict[str, list[float]]:
        """Train for all steps; returns what `run_steps` does."""
        given = self.batches()

        def step(index: int) -> dict[str, torch.Tensor]:
            if index == self.n_warmup:
                self.start_codebooks()
            return self.step(next(given), index)

        history = run_steps(step, self.n_steps, "item tokenizer", progress)
        if self.table is not None:
            self.table.settle()
        return history

    def batches(self) -> Iterator[Batch]:
        """Endless batches, epoch after epoch."""
        return batches(self.windows, self.known.shape[1], BATCH_SIZE, DRAWN, self.every, self.generator)

    def step(self, batch: Batch, index: int) -> dict[str, torch.Tensor]:
        """One step of the network, one of the probes, and the upkeep of the codebooks; returns the losses."""
        self.network.train()
        losses, bound, pairs = self.losses(*batch, quantised=index >= self.n_warmup)
        weights = {name: self.weights[name] * (self.every if name in OF_DRAWN else 1) for name in losses}
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack([weights[name] * value for name, value in losses.items()]).sum().backward()
        rows = [] if self.table is None else [self.table.values]
        nn.utils.clip_grad_norm_([*self.parameters, *rows], GRADIENT_NORM)
        self.optimizer.step()
        if self.table is not None:
            self.table.move(float(self.schedule.get_last_lr()[0]))
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
        """Start the codebooks by k-means on what the chains would quantise at the first level, of some items."""
        network, n_items = self.network.eval(), self.known.shape[1]
        if self.table is not None:
            self.table.settle()
        asked = torch.arange(n_items)
        if n_items > N_START_POINTS:
            asked = some(n_items, N_START_POINTS, self.generator)
        asked = asked.to(self.device)
        known = self.catalogue.known[:, asked]
        inputs = network.unbound(network.all_signals(self.catalogue, asked), known).inputs
        network.quantizer.start(inputs, network.chains_known(known), self.generator)

    def losses(
        self, windows: torch.Tensor, valid: torch.Tensor, drawn: torch.Tensor, quantised: bool = True
    ) -> tuple[dict[str, torch.Tensor], Bound, Pairs]:
        """Every objective on one batch, not weighed; all quantised items; what to fit the probes on.

        Each different item is encoded once. Without random items there are no objectives of theirs.
        """
        items, places = torch.unique(torch.cat([windows.flatten(), drawn]), return_inverse=True)
        places, picked = places[: windows.numel()].view(windows.shape), places[windows.numel() :]
        rows = items.to(self.device, non_blocking=True)
        features, known = self.catalogue.rows(rows)
        id_rows = None if self.table is None else self.table.take(rows)
        signals = self.network.signals(features, known, id_rows)
        bound = (self.network.bind if quantised else self.network.unbound)(signals, known)
        has = self.network.chains_known(self.known[:, items])  # on the CPU
        labels = labels_of(bound.codes) if quantised else rows.expand(len(bound.codes), -1)
        losses = {
            "commitment": bound.loss,
            "sequence_contrast": self._sequence_contrast(bound.vectors, has, labels, places, valid),
        }
        if not len(drawn):
            return losses, bound, {}
        at = picked.to(self.device, non_blocking=True)
        losses["cross_contrast"] = cross_signal_contrast(bound.vectors[:, at], has[:, picked], labels[:, at])
        item_losses, pairs = self._item_losses(
            [matrix[at] for matrix in features], self.known[:, items[picked]], signals[:, at]
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
        histories = functional.embedding(places[:, :-1].to(self.device, non_blocking=True), whole)
        encoded = kept(self.network.sequence(histories).flatten(0, 1), valid.flatten())
        targets = places[:, 1:][valid]
        places = targets.to(self.device, non_blocking=True)
        alone = list(zip(vectors, known, labels, strict=True)) if len(vectors) > 1 else []
        terms = []
        for candidate, has, label in [(whole, known.any(0), hashed(labels.T)), *alone]:
            # An item without the signal is neither target nor negative.
            queries, at = (kept(one, has[targets]) for one in (encoded, places))
            terms.append(info_nce(queries, functional.embedding(at, candidate), label[at]))
        return torch.stack(terms).mean()

    def _item_losses(
        self, features: list[torch.Tensor], known: torch.Tensor, signals: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], Pairs]:
        """Reconstruction, by both parts and by the behaviour part alone, and independence; means over the modalities.

        `known` stands on the CPU. Reconstruction leaves the behaviour parts alone: they would hold more of the
        features, and more items collide.
        """
        rebuilt, shares, pairs = [signals.new_zeros(())], [signals.new_zeros(())], {}
        for modality, (rows, has) in enumerate(zip(features, known, strict=True)):
            if has.sum() < 2:  # nothing to standardise over
                continue
            x, behavior = kept(rows, has), kept(signals[modality], has)
            specific, explained, decoded = self.network.split(modality, x, behavior.detach())
            rebuilt.append(functional.mse_loss(decoded, x) + functional.mse_loss(explained, x))
            behavior = functional.batch_norm(behavior, None, None, training=True)
            shares.append(self.probes[modality].explained(specific, behavior))
            pairs[modality] = specific.detach(), behavior.detach()
        sums = {"reconstruction": torch.stack(rebuilt).sum(), "independence": torch.stack(shares).sum()}
        return {name: value / max(len(features), 1) for name, value in sums.items()}, pairs


def labels_of(codes: torch.Tensor) -> torch.Tensor:
    """Number items so that in a chain those of one label have the same vector [G, B], from their codes [G, B, L]."""
    return torch.stack([hashed(chain) for chain in codes])


HASH = 0x2545F4914F6CDD1D
"""An odd number that spreads over 64 bits (the multiplier of xorshift*)."""


def hashed(rows: torch.Tensor) -> torch.Tensor:
    """One number [B] for each different row [B, L] of whole numbers, modulo 2 ** 64.

    Sorting rows to number them would take longer than the contrasts that read the numbers; that two different rows of a
    batch get the same one happens about once in 10 ** 13 batches.
    """
    label = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    for column in rows.unbind(1):
        label = label * HASH + column
    return label


def run_steps(
    step: Callable[[int], Mapping[str, torch.Tensor]], n_steps: int, title: str, progress: bool
) -> dict[str, list[float]]:
    """Call `step(index)` for every step; return each loss it names, averaged over every hundredth part of training.

    A loss that no step of such a part has named keeps its last value. Only where a part ends are the numbers fetched
    from their device.
    """
    every = max(n_steps // 100, 1)
    history: dict[str, list[float]] = {}
    named: dict[str, list[torch.Tensor]] = {}
    bar = tqdm(range(n_steps), desc=title, unit="step", disable=not progress, leave=False)
    for index in bar:
        for name, value in step(index).items():
            named.setdefault(name, []).append(value)
        if (index + 1) % every == 0:
            means = {name: float(torch.stack(values).mean()) for name, values in named.items()}
            for name in history.keys() | means.keys():
                history.setdefault(name, []).append(means[name] if name in means else history[name][-1])
            bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()}, refresh=False)
            named = {}
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
