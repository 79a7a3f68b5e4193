"""Training batches of whole sequences: every target once, little padding.

Shapes: B windows in the batch, T items of its longest one.
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import (
    FullSortEvalDataLoader,
    KnowledgeBasedDataLoader,
    NegSampleEvalDataLoader,
    UserDataLoader,
)
from recbole.data.interaction import Interaction
from recbole.data.utils import create_samplers, get_dataloader
from recbole.sampler import KGSampler
from recbole.utils import InputType

from .. import distributed, schema
from ..errors import InputError
from .sequences import Sequences, windows

POOL = 16
"""Batches' worth of windows that are shuffled together and then sorted by length."""


class WindowDataLoader:
    """Batches of sequence windows, in the place of RecBole's training data loader.

    A batch holds as many windows as have about `train_batch_size` targets together, so that every target weighs the
    same in the epoch's loss and every step costs the same. Windows of about equal length share a batch.

    A batch is an `Interaction` with `item_id_list` [B, T] (0 pads on the right), `item_length` [B] and `target_list`
    [B, T], the item after each position; 0 where there is none or an earlier window has it. `target_place` [n] says
    where the others are in the flattened list: to find out on a GPU would mean waiting for it.

    With several processes, each gets a share of the windows of every batch; `target_share`, the same in each row, says
    which share of the batch's targets is in them.
    """

    TARGETS, PLACE, SHARE = "target_list", "target_place", "target_share"

    def __init__(self, config: Any, dataset: Any, sequences: Sequences) -> None:
        self.config = config
        self.dataset = self._dataset = dataset
        self.sequences = sequences
        self.shuffle = bool(config["shuffle"])
        self.generator = torch.Generator().manual_seed(config["seed"])
        self._start, self._size, self._skipped = windows(sequences, config["MAX_ITEM_LIST_LENGTH"])
        self._fields = (dataset.iid_field + config["LIST_SUFFIX"], dataset.item_list_length_field, self.TARGETS)
        self.n_targets = int((self._size - self._skipped).sum())
        self._n_batches = len(self._batches(np.arange(len(self._start))))

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[Interaction]:
        order = np.arange(len(self._start))
        if self.shuffle:
            order = torch.randperm(len(order), generator=self.generator).numpy()
        batches = self._batches(order)
        if self.shuffle:
            batches = [batches[index] for index in torch.randperm(len(batches), generator=self.generator).tolist()]
        yield from map(self._collate if distributed.world() == 1 else self._collate_share, batches)

    def _batches(self, order: np.ndarray) -> list[np.ndarray]:
        if not len(order):
            return []
        targets = (self._size - self._skipped)[order]
        n_batches = max(round(int(targets.sum()) / self.config["train_batch_size"]), 1)
        n_pools = max(round(n_batches / POOL), 1)
        pool_of = np.minimum(np.cumsum(targets) * n_pools // targets.sum(), n_pools - 1)
        # Sorted by pool, then by length, up and down in turn: where a batch lies in two pools, its windows are all long
        # or all short. The sort is stable, so equal lengths keep their random order.
        by_length = np.lexsort((self._size[order] * np.where(pool_of % 2, -1, 1), pool_of))
        edges = np.cumsum(targets[by_length]) * n_batches / targets.sum()
        cut = np.searchsorted(edges, np.arange(1, n_batches), side="left")
        order = order[by_length]
        return [rows for rows in np.split(order, cut) if len(rows)]

    def _collate_share(self, rows: np.ndarray) -> Interaction:
        """Return this process's share of a batch; where that is empty, a window that counts for nothing."""
        own, targets = distributed.share(rows), self._size - self._skipped  # of about equal length, so equal work
        part = targets[own].sum() / targets[rows].sum()
        shown = self._collate(own if len(own) else rows[:1])
        shown.update(Interaction({self.SHARE: torch.full((len(shown),), float(part))}))
        return shown

    def _collate(self, rows: np.ndarray) -> Interaction:
        size, skipped = self._size[rows], self._skipped[rows]
        columns = np.arange(size.max())
        inside = columns < size[:, None]
        position = np.where(inside, self._start[rows, None] + columns, 0)
        items = np.where(inside, self.sequences.items[position], 0)
        is_target = inside & (columns >= skipped[:, None])
        following = self.sequences.items[np.where(is_target, position + 1, 0)]
        columns = dict(zip(self._fields, (items, size, np.where(is_target, following, 0)), strict=True))
        columns[self.PLACE] = np.flatnonzero(is_target)
        return Interaction({field: torch.from_numpy(values) for field, values in columns.items()})


def check_negatives(config: Any, kind: str) -> None:
    """Raise an `InputError` where a model of a kind (see `schema`) learns from negatives and the run samples none."""
    sampled = config["train_neg_sample_args"]["distribution"] != "none"
    has_labels = schema.is_labelled(config.final_config_dict)
    pairs = config["MODEL_INPUT_TYPE"] == InputType.PAIRWISE and config["loss_type"] != "CE"
    pointwise = config["MODEL_INPUT_TYPE"] == InputType.POINTWISE
    labelled = pointwise and kind in (schema.GENERAL, schema.CONTEXT, schema.KNOWLEDGE)
    needs = pairs or ((labelled or config["model"] in schema.CLICK_MODELS) and not has_labels)
    of_users = get_dataloader(config, "train") is UserDataLoader  # autoencoders, which read whole rows of the matrix
    if needs and not sampled and not of_users and kind != schema.TRADITIONAL:
        raise InputError(f"train_neg_sample_args: found none, but {config['model']} here trains on negatives; drop it")


def split_loaders(config: Any, dataset: Any) -> tuple[Any, Any, Any]:
    """Split the data set; return loaders for training (windows for our models, else RecBole's), validation and test.

    RecBole's `data_preparation` does the same, but first unpickles a file of a fixed name wherever it finds one.
    """
    parts = dataset.build()
    if not (
        dataset.makes_prefixes or dataset.rows_are_interactions
    ):  # nothing is sampled either, for which RecBole would keep a set for every user
        valid, test = (FullSortEvalDataLoader(config, part, None) for part in parts[1:])
        return WindowDataLoader(config, parts[0], parts[0].train_sequences), valid, test
    samplers = create_samplers(config, dataset, parts)
    if samplers[0] is not None:
        _count_training_alone(samplers[0], parts[0])
    kind = get_dataloader(config, "train")
    of_graph = [_graph_sampler(config, dataset)] if kind is KnowledgeBasedDataLoader else []
    train = kind(config, parts[0], samplers[0], *of_graph, shuffle=config["shuffle"])
    # Labelled rows are judged as they are, without any sampler.
    kinds = (NegSampleEvalDataLoader if sampler is None else FullSortEvalDataLoader for sampler in samplers[1:])
    valid, test = (kind(config, part, of) for kind, part, of in zip(kinds, parts[1:], samplers[1:], strict=True))
    return train, valid, test


def _count_training_alone(sampler: Any, train: Any) -> None:
    """Count popularity over the training rows alone; what users had met stays as RecBole has it."""
    sampler.datasets, sampler.dataset = [train], train
    sampler.set_distribution(sampler.distribution)  # counts again


def _graph_sampler(config: Any, dataset: Any) -> KGSampler:
    """What draws triples that are not in the knowledge graph."""
    drawn = config["train_neg_sample_args"]
    return KGSampler(dataset, drawn["distribution"], drawn["alpha"])


@contextlib.contextmanager
def seeded_draws(seed: int, asked: bool) -> Iterator[None]:
    """Seed what the block draws on the CPU, from whichever generator, and put the generators back after it."""
    if not asked:
        yield
        return
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (RecBole's models draw from the global state)
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def seed_batches(loader: Any, seed: int) -> None:
    """Seed what a training loader shuffles with; a knowledge graph's has two loaders in it."""
    for one in (getattr(loader, name, None) for name in ("general_dataloader", "kg_dataloader")):
        if one is not None:
            one.generator.manual_seed(seed)
    if hasattr(loader, "generator"):
        loader.generator.manual_seed(seed)
