"""Groups of targets: by how popular the item is in training, by how long the history is, cold and warm ones.

Shapes: R judged rows, N items (0 = padding).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from .ranking import Ranks

EDGES = {"popularity": (0, 1, 5, 20), "length": (0, 5, 10, 20, 50)}
"""Where groups begin. Popularity is the number of training interactions of the item: with 0 its ID embedding is
untrained, and below 5 are the rarest items of five-core data sets. Length is the number of the user's interactions
before the target."""
COLD = "cold"


def groups_of(ranks: Ranks, judged: Any, train: Any, names: Iterable[str]) -> dict[str, Ranks]:
    """Return all rows, and those of each group that has any: `popularity 1-4`, `length 20-49`, `warm`, `cold`.

    Parameters
    ----------
    judged, train : the data sets of the split and of training.
    names : what to group by, of `EDGES` and `cold`: targets without training interactions. Where items were held out,
        the last is always asked for.
    """
    rows = slice(None) if ranks.rows is None else ranks.rows
    targets = judged.inter_feat[judged.iid_field].numpy()[rows]
    known = {
        "popularity": np.bincount(train.train_sequences.items, minlength=judged.item_num)[targets],
        "length": (judged.histories.stop - judged.histories.start)[rows],
    }
    names, found = list(names), ranks.groups()
    if COLD in names and ranks.cold is None:
        is_cold = known["popularity"] == 0
        found |= {"warm": ranks.of(~is_cold), "cold": ranks.of(is_cold)}
    for name in (name for name in names if name in EDGES):
        for begin, end in zip(EDGES[name], (*EDGES[name][1:], None), strict=True):
            inside = (known[name] >= begin) & (True if end is None else known[name] < end)
            words = f"{begin}+" if end is None else f"{begin}-{end - 1}" if end > begin + 1 else f"{begin}"
            found[f"{name} {words}"] = ranks.of(inside)
    return {name: of for name, of in found.items() if len(of.users)}
