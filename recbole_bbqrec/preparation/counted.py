"""Features of texts and code columns from the terms in them; what is learned from rows is kept and serves new rows too.

Shapes: N rows (items), V terms, D dimensions.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

FITTED = "fitted"
"""Name of the `Counted` among the notes of an encoding."""

# Titles are short: one-letter words ("5 x 7") are telling, and a repeated word is hardly twice as important.
_WORDS: dict[str, Any] = {"token_pattern": r"(?u)\b\w+\b", "ngram_range": (1, 2), "sublinear_tf": True}
# A row is its (position, code) pairs already.
_PAIRS: dict[str, Any] = {"analyzer": list, "lowercase": False, "dtype": np.float64}

Encoded = tuple[Tensor, Tensor, dict[str, Any]]


class Counted:
    """What was learned from rows: terms, their weights and dimensions.

    Parameters
    ----------
    method : `tfidf` or `codes`.
    vectorizer : scikit-learn's, fitted: rows to a sparse matrix [N, V].
    components : [D, V] maps terms to dimensions; none where terms are the dimensions.
    """

    PARTS = ("terms", "idf", "components")
    """Names of the tensors of its state, of which it may lack some."""

    def __init__(self, method: str, vectorizer: Any, components: np.ndarray | None) -> None:
        self.method, self.vectorizer, self.components = method, vectorizer, components

    def encode(self, rows: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features [N, D] of rows as they were given to `tfidf` or `codes`, and whether a known term is in them [N]."""
        matrix = self.vectorizer.transform([_pairs(row) for row in rows] if self.method == "codes" else rows)
        dense = matrix.toarray() if self.components is None else matrix @ self.components.T
        return torch.from_numpy(dense.astype(np.float32)), torch.from_numpy(np.diff(matrix.indptr) > 0)

    def state(self) -> dict[str, Tensor]:
        """Tensors that `restore` takes."""
        terms = self.vectorizer.get_feature_names_out()
        names = [f"{at} {code}" for at, code in terms] if self.method == "codes" else terms
        state = {"terms": torch.tensor(list("\n".join(names).encode()), dtype=torch.uint8)}
        if self.method == "tfidf":
            state["idf"] = torch.from_numpy(self.vectorizer.idf_)
        if self.components is not None:
            state["components"] = torch.from_numpy(self.components.astype(np.float32))
        return state

    @classmethod
    def restore(cls, method: str, state: Mapping[str, Tensor]) -> "Counted":
        """What was learned, from the tensors of `state`."""
        terms = bytes(state["terms"].numpy()).decode().split("\n")
        components = state["components"].numpy() if "components" in state else None
        if method == "codes":
            pairs = (term.split(" ") for term in terms)
            return cls(method, _pairs_of((int(at), code) for at, code in pairs), components)
        vectorizer = _words(vocabulary=terms)
        vectorizer.idf_ = state["idf"].numpy()
        return cls(method, vectorizer, components)


def tfidf(texts: Sequence[str], dim: int, seed: int, fitted: np.ndarray | None = None) -> Encoded:
    """Weigh words and word pairs by TF-IDF and reduce them to at most `dim` dimensions by truncated SVD.

    Terms of one text only say nothing about other items and are left out, unless there are no others. A text without
    any term counts as unknown. With fewer terms than `dim` the matrix is as wide as there are terms. Terms, weights and
    dimensions are learned from the texts `fitted`, bool [N], by default all; the notes have them as `fitted`.
    """
    return _fit("tfidf", texts, [_words(min_df=least) for least in (2, 1)], dim, seed, fitted)


def codes(rows: Sequence[str], dim: int, seed: int, fitted: np.ndarray | None = None) -> Encoded:
    """One-hot vectors of code columns such as `A_154 B_106 C_221`, one dimension per (position, code).

    They are exact where that takes at most `dim` dimensions and reduced to `dim` by truncated SVD otherwise. Codes that
    none of the rows `fitted`, bool [N], has are left out; by default these are all. Notes as those of `tfidf`.
    """
    pairs = [_pairs(row) for row in rows]
    known = {pair for at, row in enumerate(pairs) if fitted is None or fitted[at] for pair in row}
    return _fit("codes", pairs, [_pairs_of(sorted(known))], dim, seed, fitted)


def _pairs(row: str) -> list[tuple[int, str]]:
    return list(enumerate(row.split()))


def _words(**how: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(strip_accents="unicode", **_WORDS, **how)


def _pairs_of(vocabulary: Any) -> Any:
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(**_PAIRS, vocabulary=list(vocabulary))


def _fit(
    method: str, rows: Sequence[Any], vectorizers: Sequence[Any], dim: int, seed: int, fitted: np.ndarray | None
) -> Encoded:
    """Return what the first of the vectorizers that finds a term makes of the rows, in at most `dim` columns."""
    from sklearn.decomposition import TruncatedSVD

    fitted = np.ones(len(rows), bool) if fitted is None else fitted
    known = np.zeros(len(rows), bool)
    for vectorizer in vectorizers:
        try:
            matrix = vectorizer.fit_transform(list(itertools.compress(rows, fitted)))  # sparse [n, V]
        except ValueError:  # how scikit-learn says that no term is left
            continue
        known[fitted], svd = np.diff(matrix.indptr) > 0, None
        if matrix.shape[1] > dim:
            # No more dimensions than rows that say something: beyond the rank there is nothing but rounding errors.
            svd = TruncatedSVD(max(1, min(dim, int(known.sum()))), random_state=seed)
        with np.errstate(divide="ignore", invalid="ignore"):  # its share of variance, where there is no variance
            dense = svd.fit_transform(matrix) if svd else matrix.toarray()
        result = np.zeros((len(rows), dense.shape[1]), np.float32)
        result[fitted] = dense
        if not fitted.all():
            matrix = vectorizer.transform(list(itertools.compress(rows, ~fitted)))
            known[~fitted] = np.diff(matrix.indptr) > 0
            result[~fitted] = svd.transform(matrix) if svd else matrix.toarray()
        learned = Counted(method, vectorizer, svd.components_ if svd else None)
        return torch.from_numpy(result), torch.from_numpy(known), {FITTED: learned}
    return torch.zeros(len(rows), 0), torch.from_numpy(known), {}
