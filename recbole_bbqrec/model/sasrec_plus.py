"""Fair controls: BBQRec with parts taken out, each a model of its own name, all trained and judged alike.

A class here is BBQRec under settings of its own, which stand in its YAML file; the name tells rows of a table apart.
Models that differ in nothing but what is fitted after training name one of them in `trained_as` and share its training.

Differences from the paper (SASRec, Kang and McAuley, ICDM 2018), all of them BBQRec's ways: windows of whole sequences
with a loss at every position, cross-entropy over sampled negatives instead of one negative with a binary loss, cosine
over a temperature instead of a dot product, normalisation before each part of a layer with GELU, AdamW with averaged
weights, early stopping on the masked column.
"""

from .bbqrec import BBQRec


class SASRecPlus(BBQRec):
    """SASRec trained as BBQRec is: item IDs alone, plain attention, dense scores; no features and no codes are made."""


class SASRecPlusT(SASRecPlus):
    """`SASRecPlus` with candidate similarity by behaviour: transitions, co-occurrence and walks of training."""

    trained_as = "SASRecPlus"


class SASRecPlusFT(SASRecPlus):
    """Everything of BBQRec but the codes: projected raw features, candidate similarity by behaviour, text and image."""


class SASRecPlusSeen(SASRecPlus):
    """`SASRecPlus` with one fitted weight for candidates that stand in the history.

    It shows what knowing that nobody takes an item twice is worth in the unmasked column; the masked one stays.
    """

    trained_as = "SASRecPlus"


class BBQRecGenerate(BBQRec):
    """BBQRec that scores as the paper does, by decoding the semantic ID code by code."""


class BBQRecWithoutCandidates(BBQRec):
    """BBQRec without candidate similarity, the extension of ours."""

    trained_as = "BBQRec"
