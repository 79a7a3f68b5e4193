import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recbole_bbqrec.data.sequences import Sequences, windows


def sequences_of(lengths):
    return Sequences(np.r_[0, np.cumsum(lengths)].astype(np.int64), np.arange(1, sum(lengths) + 1))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 9))
def test_every_target_occurs_exactly_once(lengths, window):
    sequences = sequences_of(lengths)
    start, size, skipped = windows(sequences, window)
    targets = [s + column + 1 for s, n, skip in zip(start, size, skipped, strict=True) for column in range(skip, n)]
    wanted = [position for begin, end in zip(sequences.offsets, sequences.offsets[1:], strict=False)
              for position in range(begin + 1, end)]  # fmt: skip
    assert sorted(targets) == wanted


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 9))
def test_windows_stay_in_their_sequence_and_give_targets_context(lengths, window):
    sequences = sequences_of(lengths)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for start, size, skipped in zip(*windows(sequences, window), strict=True):
        assert size <= window
        assert owner[start] == owner[start + size]  # the last target still belongs to the user
        for column in range(skipped, size):
            position = start + column + 1 - sequences.offsets[owner[start]]
            assert column + 1 >= min(position, window // 2)
