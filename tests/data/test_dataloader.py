from types import SimpleNamespace

import numpy as np
import pytest

from recbole_bbqrec.data.dataloader import WindowDataLoader
from recbole_bbqrec.data.sequences import Sequences

SETTINGS = {
    "train_batch_size": 64,
    "MAX_ITEM_LIST_LENGTH": 50,
    "LIST_SUFFIX": "_list",
    "shuffle": True,
    "seed": 1,
}
FIELDS = SimpleNamespace(iid_field="item_id", item_list_length_field="item_length")


@pytest.mark.parametrize("n_users", [600, 725, 850])
def test_windows_that_share_a_batch_are_of_about_equal_length(n_users):
    # One user in five is long. With whatever number of targets an epoch ends, no batch may pad many short windows to
    # the length of a long one: not where the windows shuffled together meet the next ones, and not at the end.
    sizes = np.where(np.arange(n_users) % 5 == 0, 41, 6)
    offsets = np.r_[0, sizes.cumsum()]
    batches = WindowDataLoader(SETTINGS, FIELDS, Sequences(offsets, np.ones(offsets[-1], np.int64)))
    lengths = [batch["item_length"] for batch in batches]
    shown = sum(int(length.sum()) for length in lengths)
    assert shown == batches.n_targets
    assert sum(len(length) * int(length.max()) for length in lengths) < 1.15 * shown
