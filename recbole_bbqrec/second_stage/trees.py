"""Gradient-boosted trees (LightGBM) as tensors: its text form, checked by a hash, so that no file runs code.

Shapes: n candidates of all histories, F features.
"""

import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit
from torch import nn

from ..errors import InputError
from .features import MODEL, Feature

LEARNING_RATE = 0.1
N_LEAVES = 15
LEAST_IN_LEAF = 100
"""Candidates in a leaf, of which one in 26 is a target."""
FEATURE_SHARE, RIDGE = 0.6, 50.0
N_HELD_TREES = 40
WIDE = 100.0
"""Bound of the shift of log-odds that are given."""
AGAIN = "delete the run's folder and run again"
DIGEST = 32
"""Bytes of the hash that stands before the text."""


def lightgbm() -> Any:
    """Return the package; where it or its OpenMP library is missing, an `InputError` says what to install."""
    try:
        import lightgbm
    except (ImportError, OSError) as error:  # its wheels do not bring libgomp along
        how = "pip install lightgbm; on a bare Linux also apt-get install libgomp1; or set --second_stage=linear"
        raise InputError(f"second_stage: LightGBM cannot be loaded ({error}); {how}") from error
    return lightgbm


class Trees(nn.Module):
    """Log-odds of being the next item, from the features of a candidate.

    Attributes
    ----------
    content : uint8, the hash of LightGBM's text form and the text.
    """

    content: torch.Tensor

    def __init__(self, content: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("content", content)

    @classmethod
    def fit(
        cls, values: np.ndarray, is_target: np.ndarray, features: Sequence[Feature], n_trees: int, seed: int
    ) -> "Trees":
        """Fit `n_trees` on values [n, F] of features and whether each candidate is the target [n].

        The effect of held features on being the target is fitted first, beside the model's scores, and taken as given.
        The trees explain the rest, and rank without it: what another feature knows of the held ones has nothing left to
        explain. (The position of a result is treated likewise in learning to rank from clicks: PAL, Guo et al., RecSys
        2019.)
        """
        is_held = np.array([feature.is_held for feature in features])
        given = _explained(values, is_target, features, seed) if is_held.any() else None
        return cls._of_text(
            _boost(np.where(is_held, 0, values), is_target, features, n_trees, seed, given).model_to_string()
        )

    @classmethod
    def _of_text(cls, text: str) -> "Trees":
        content = re.sub(r"\[num_threads: \d+\]\n", "", text).encode()  # of the machine, not of the trees
        return cls(torch.frombuffer(bytearray(hashlib.sha256(content).digest() + content), dtype=torch.uint8))

    @functools.cached_property
    def _booster(self) -> Any:
        content = bytes(self.content.cpu().numpy())
        text = content[DIGEST:]
        if hashlib.sha256(text).digest() != content[:DIGEST]:
            raise InputError(f"second stage: its trees are damaged; {AGAIN}")
        package = lightgbm()
        try:
            check(text.decode())
            return package.Booster(model_str=text.decode())
        except (package.basic.LightGBMError, ValueError, KeyError) as error:
            why = " ".join(str(error).split())[:200]
            raise InputError(f"second stage: its trees cannot be read ({why}); {AGAIN}") from error

    def _predict(self, features: np.ndarray, **what: Any) -> np.ndarray:
        return self._booster.predict(features, num_threads=torch.get_num_threads(), **what)

    def forward(self, features: np.ndarray) -> np.ndarray:
        """Log-odds [n] of features [n, F]."""
        return self._predict(features, raw_score=True)

    def first(self, n_trees: int) -> "Trees":
        """The first `n_trees` alone."""
        return self._of_text(self._booster.model_to_string(num_iteration=n_trees))

    def staged(self, features: np.ndarray, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield log-odds [n] by so many of the first trees, for ascending `numbers` of them."""
        odds, done = np.zeros(len(features)), 0
        for number in numbers:
            part = {"start_iteration": done, "num_iteration": number - done}
            odds = odds + self._predict(features, raw_score=True, **part)
            done = number
            yield number, odds

    def contributions(self, features: np.ndarray) -> np.ndarray:
        """Shares [n, F] of the features in the log-odds (Shapley values, Lundberg et al., 2020)."""
        return self._predict(features, pred_contrib=True)[:, :-1]


def _boost(
    values: np.ndarray,
    is_target: np.ndarray,
    features: Sequence[Feature],
    n_trees: int,
    seed: int,
    given: np.ndarray | None = None,
    **more: Any,
) -> Any:
    """LightGBM's booster of the log-odds beyond those that are `given` [n]."""
    settings = {
        "objective": "binary",
        "learning_rate": LEARNING_RATE,
        "num_leaves": N_LEAVES,
        "min_data_in_leaf": LEAST_IN_LEAF,
        "feature_fraction_bynode": FEATURE_SHARE,
        "lambda_l2": RIDGE,
        "monotone_constraints": [feature.direction for feature in features],
        "monotone_constraints_method": "intermediate",
        "max_bin": 127,
        "num_threads": torch.get_num_threads(),
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,  # with `deterministic`: the same trees whatever was timed to be faster
        "verbose": -1,
        **more,
    }
    package = lightgbm()
    data = package.Dataset(values, is_target.astype(np.float32), init_score=given, params={"verbose": -1})
    return package.train(settings, data, n_trees)


def _explained(values: np.ndarray, is_target: np.ndarray, features: Sequence[Feature], seed: int) -> np.ndarray:
    """Log-odds [n] by held features alone, as they are beside scores of the model that keep their direction."""
    columns = [
        at
        for at, feature in enumerate(features)
        if feature.is_held or (feature.group, abs(feature.direction)) == (MODEL, 1)
    ]
    chosen, known = [features[at] for at in columns], values[:, columns]
    # A tree reads either the one kind or the other: their shares add up.
    apart = [[at for at, feature in enumerate(chosen) if feature.is_held == is_held] for is_held in (True, False)]
    more = {"learning_rate": 0.3, "lambda_l2": 1.0, "interaction_constraints": [one for one in apart if one]}
    booster = _boost(known, is_target, chosen, N_HELD_TREES, seed, **more)
    without = known.copy()
    without[:, apart[0]] = 0.0
    added = booster.predict(known, raw_score=True) - booster.predict(without, raw_score=True)
    # Match the number of targets: where log-odds are given, LightGBM does not begin at the right mean by itself.
    return added + brentq(lambda shift: expit(added + shift).sum() - is_target.sum(), -WIDE, WIDE)


def check(text: str) -> None:
    """Raise a `ValueError` or `KeyError` unless `text` holds whole binary trees that stay within their own arrays.

    LightGBM trusts what it reads: a text that somebody has written with a right hash could end the process, or read
    beyond its memory.
    """
    body, end, _ = text.partition("end of trees")
    head, *blocks = body.split("Tree=")
    known = _fields(head)
    sizes = [len(f"Tree={block}") for block in blocks]
    if not end or sizes != _numbers(known["tree_sizes"]) or not text.isascii():
        raise ValueError("it is cut, or its parts do not have the sizes it states")
    if (known["num_class"], known["num_tree_per_iteration"]) != ("1", "1"):
        raise ValueError("it has several classes")
    for block in blocks:
        _check_tree(_fields(block), int(known["max_feature_idx"]))


def _check_tree(tree: dict[str, str], last_feature: int) -> None:
    n_leaves = int(tree["num_leaves"])
    left, right, kinds, features = (
        _numbers(tree[name]) for name in ("left_child", "right_child", "decision_type", "split_feature")
    )
    if {tree["num_cat"], tree["is_linear"]} != {"0"} or any(kind & 1 for kind in kinds):
        raise ValueError("it has categorical splits or linear leaves")
    if any(len(numbers) != n_leaves - 1 for numbers in (left, right, kinds, features, tree["threshold"].split())):
        raise ValueError("its trees have other numbers of splits than they say")
    # Leaf i is child -1 - i; every node but the root is the child of one that stands before it.
    if sorted(left + right) != [node for node in range(-n_leaves, n_leaves - 1) if node] and n_leaves > 1:
        raise ValueError("its nodes do not form a tree")
    if any(0 < child <= node for children in (left, right) for node, child in enumerate(children)):
        raise ValueError("its nodes do not form a tree")
    if not all(0 <= feature <= last_feature for feature in features) or len(tree["leaf_value"].split()) != n_leaves:
        raise ValueError("its splits or leaves refer to features or values that do not exist")


def _fields(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in text.splitlines())}


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split()]
