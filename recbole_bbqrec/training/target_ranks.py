"""The part of a trainer that ranks the targets of a split, whatever the model: the one place where ranks are made."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer
from tqdm import tqdm

from .. import distributed
from ..data.cold_items import is_cold
from ..data.dataloader import seeded_draws
from ..data.sequences import seen_before
from ..evaluation.candidates import Sampling, draw_candidates, sampling_of
from ..evaluation.judging import Judging, ShownCounts
from ..evaluation.lists import Lists
from ..evaluation.metrics import of_lists
from ..evaluation.ranking import COLUMNS, Ranks, rank_products, rank_targets, tie_order
from ..model.protocol import Pairs, RankingModel, RecBoleRanker, context_fields, ranker_of

CELLS = 2**24
"""Scores of all items that are held at once, of models whose scores are no products: 64 MiB."""


class TargetRanks(Trainer):
    """Ranks the targets of rows: of histories, each with its own, or of interactions, whose users have one list."""

    _grown: Any = None

    @functools.cached_property
    def ranker(self) -> RankingModel | RecBoleRanker:
        """The model, as a ranker."""
        return ranker_of(self.model, self.config)

    @functools.cached_property
    def _seen_before(self) -> Callable[..., Any]:
        """Of each split, what its users have seen before it: collected once."""
        return functools.cache(seen_before)

    @functools.cached_property
    def _candidates(self) -> Callable[..., Any]:
        """Of each split, the items that its targets are ranked among where they are sampled: drawn once."""
        return functools.cache(self._drawn)

    @torch.no_grad()
    def rank(
        self, eval_data: Any, earlier: list[Any], show_progress: bool = False, rows: np.ndarray | None = None
    ) -> Ranks:
        """Rank the target of every row of `eval_data`, or of some `rows` [R], with the model as it is.

        `eval_data` is RecBole's full-sort evaluation loader, `earlier` the data sets before it, see `seen_before`. Of
        several processes each ranks a share of the rows, and all of them get all ranks.
        """
        self.model.eval()
        dataset = eval_data._dataset
        self.tot_item_num = dataset.item_num
        if self.item_tensor is None:
            self.item_tensor = dataset.get_item_feature().to(self.device)
        if (liked := dataset.positive_rows) is not None:
            rows = liked if rows is None else np.intersect1d(rows, liked)
        judged = np.arange(len(dataset.inter_feat)) if rows is None else rows
        per_user = self._has_one_list(dataset)
        if per_user and len(judged) > len(once := judged[first_of_pairs(dataset, judged)]):
            rows = judged = once  # RecBole's targets of a user are a set
        order = self._order(dataset, judged)
        judging = self._judging(dataset, tuple(earlier), judged)
        n_parts = distributed.rounded(-(-len(order) // self.config["eval_batch_size"]))
        own = [part for part in distributed.share(np.array_split(order, n_parts)) if len(part)] if n_parts else []
        bar = tqdm(total=sum(map(len, own)), desc="rank", ncols=100, disable=not show_progress, leave=False)
        ranker, cold = self._ranker_for(dataset), is_cold(dataset)
        shared, parts = ranker.shared(), []
        # Some of RecBole's models of users draw while they score.
        with bar, seeded_draws(self.config["seed"], dataset.rows_are_interactions):
            for part in own:
                parts.append(self._rank_rows(eval_data, judged[part], judging, ranker, shared))
                bar.update(len(part))
        ranks = np.zeros((len(COLUMNS), len(order)), np.int64)
        if parts:  # they come from the device once, after the last one
            ranks[:, np.concatenate(own)] = torch.cat(parts, dim=1).cpu().numpy()
        distributed.add(ranks)  # zeros, where other processes have ranked
        users = dataset.inter_feat[dataset.uid_field].numpy()[judged]
        cold = None if cold is None else cold[judged]
        shown = judging.shown and judging.shown.total(earlier[0], self.config["tail_ratio"])
        return Ranks(users, *ranks, cold=cold, rows=rows, per_user=per_user, shown=shown)

    def _has_one_list(self, dataset: Any) -> bool:
        """Whether all targets of a user stand in one list: rows are interactions, of which the model reads no more."""
        return dataset.rows_are_interactions and not context_fields(self.model, dataset)

    def _judging(self, dataset: Any, earlier: tuple[Any, ...], judged: np.ndarray) -> Judging:
        """What the `judged` rows [R] are ranked by, and whether what is shown is counted."""
        seen, n_items = self._seen_before(dataset, earlier), dataset.item_num
        ties, topk = tie_order(n_items, self.config["seed"]).to(self.device), self.config["topk"]
        users = dataset.inter_feat[dataset.uid_field].numpy() if self._has_one_list(dataset) else None
        wanted = of_lists(self.config["metrics"])
        shown = ShownCounts(topk, n_items, judged, users, self.device) if wanted else None
        sampling = sampling_of(self.config.final_config_dict, ("valid", "test")[len(earlier) - 1])
        return Judging(seen, ties, self._candidates(dataset, earlier, sampling) if sampling else None, shown)

    def _drawn(self, dataset: Any, earlier: tuple[Any, ...], sampling: Sampling) -> dict[str, Any]:
        return draw_candidates(dataset, earlier[0], sampling, self._seen_before(dataset, earlier))

    def _order(self, dataset: Any, judged: np.ndarray) -> np.ndarray:
        """Places of rows in the order in which they are ranked."""
        if dataset.rows_are_interactions:  # those of a user share their scores
            return np.argsort(dataset.inter_feat[dataset.uid_field].numpy()[judged], kind="stable")
        lengths = np.minimum(dataset.histories.stop - dataset.histories.start, self.config["MAX_ITEM_LIST_LENGTH"])
        # Rows of one length side by side: a model that trims its batches has no work with padding.
        return np.argsort(lengths[judged], kind="stable")

    def _ranker_for(self, dataset: Any) -> Any:
        """The model, as a `Ranker` of all items of `dataset`: where there are new ones, with its current weights."""
        if dataset.catalogue.n_trained is None:
            return self.ranker
        if self._grown is None:
            self._grown = type(self.model)(self.config, dataset).to(self.device)
        self._grown.load_state_dict(self.model.state_dict())
        return self._grown.eval()

    def _rank_rows(self, eval_data: Any, rows: np.ndarray, judging: Judging, ranker: Any, shared: Any) -> torch.Tensor:
        """Ranks [2, B] of some rows in the order of `COLUMNS`."""
        most = max(1, CELLS // len(judging.ties))  # rows whose scores of all items are held at once
        if eval_data._dataset.rows_are_interactions:
            parts = np.split(rows, range(most, len(rows), most))
            return torch.cat([self._rank_users(eval_data._dataset, part, judging) for part in parts], dim=1)
        interaction, _, _, targets = eval_data.collate_fn(rows)
        targets, ties, ranks = targets.to(self.device), judging.ties, {}
        histories = interaction[self.model.ITEM_SEQ].to(self.device)

        def ranked(scores: torch.Tensor, columns: Sequence[str] = COLUMNS) -> dict[str, torch.Tensor]:
            def rank(pairs: Pairs, lists: Lists | None) -> dict[str, torch.Tensor]:
                return rank_targets(scores, targets, pairs, ties, ranker.is_beam_search, lists)

            return judging.ranks(rows, rank, columns)

        if products := ranker.products(histories, shared):
            queries, keys = products
            ranks = judging.ranks(rows, lambda seen, lists: rank_products(queries, keys, targets, seen, ties, lists))
        elif len(rows) > most:
            parts = np.split(rows, range(most, len(rows), most))
            return torch.cat([self._rank_rows(eval_data, part, judging, ranker, shared) for part in parts], dim=1)
        elif self.ranker is not self.model:  # RecBole's own models may read more than histories
            ranks = ranked(self._full_sort_batch_eval((interaction, None, None, None))[1])
        elif not ranker.is_beam_search:
            # Of what is shown every item has to stand in its place, not the target alone.
            scores = ranker.score(histories, shared=shared) if judging.shown else None
            ranks = ranked(ranker.scores_to_rank(histories, targets, shared) if scores is None else scores)
        else:  # what a user has seen is masked before the beam is cut: two searches, one for each column
            for column, excluded in (("masked", judging.pairs(judging.seen, rows)), ("unmasked", None)):
                ranks |= ranked(ranker.score(histories, excluded=excluded, shared=shared), [column])
        return torch.stack([ranks[column] for column in COLUMNS])

    def _rank_users(self, dataset: Any, rows: np.ndarray, judging: Judging) -> torch.Tensor:
        """Ranks [2, B] of rows that are interactions; of a user they share their scores if they are equal."""
        known, context = dataset.inter_feat, context_fields(self.model, dataset)
        first, place = rows, np.arange(len(rows))
        if not context:
            _, at, place = np.unique(known[dataset.uid_field].numpy()[rows], return_index=True, return_inverse=True)
            first = rows[at]
        asked = Interaction({field: known[field][first] for field in (dataset.uid_field, *context)})
        ranker: Any = self.ranker
        scores = ranker.of_users(dataset.join(asked).to(self.device), self.item_tensor)
        targets = known[dataset.iid_field][rows].to(self.device)
        scores, ties = scores[torch.from_numpy(place)], judging.ties
        ranks = judging.ranks(rows, lambda pairs, lists: rank_targets(scores, targets, pairs, ties, lists=lists))
        return torch.stack([ranks[column] for column in COLUMNS])


def first_of_pairs(dataset: Any, rows: np.ndarray) -> np.ndarray:
    """Places among `rows` [R] of a data set, ascending, of the first row of each pair of a user and an item."""
    users, items = (dataset.inter_feat[field].numpy()[rows] for field in (dataset.uid_field, dataset.iid_field))
    return np.sort(np.unique(users.astype(np.int64) * dataset.item_num + items, return_index=True)[1])
