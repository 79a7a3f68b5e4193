"""The bundle in use: asked by many requests together, exchanged for a newer generation between two batches."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from ...errors import InputError
from .. import generations
from ..bundle import Bundle, Recommendation
from .batching import Batcher
from .metrics import Metrics

POLL_SECONDS = 1.0
BATCH, WAITING = 64, 1024
"""Histories scored at once, beyond which there is little to gain; and requests that may wait, about a second's work."""
EXPLAINED, EXPLAINED_WAITING = 4, 128
"""The same where reasons are asked for: without trees each is as much work as a history for each of its items."""

logger = logging.getLogger(__name__)


class Ask(NamedTuple):
    """One request for recommendations; those that differ in the history and `k` alone are scored together."""

    history: Sequence[str]
    k: int = 10
    exclude_seen: bool = True
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] | None = None
    explain: bool = False


class Live:
    """The newest generation of a bundle's folder.

    Parameters
    ----------
    bundle : as it was when the service began; a newer one is taken as soon as `follow` sees it.
    index : what newer ones are searched by, as `Bundle.use_index` has it; none = the exact search.

    Attributes
    ----------
    bundle : whoever reads it once works with one generation to the end, whatever comes meanwhile.
    """

    def __init__(self, bundle: Bundle, metrics: Metrics, index: str | None = None) -> None:
        self.bundle, self._metrics, self._index, self._exchange = bundle, metrics, index, threading.Lock()
        metrics.generation.set(bundle.generation)
        self._plain: Batcher[Ask, dict[str, Any]] = Batcher(self._answers, BATCH, WAITING, "scoring")
        self._explained: Batcher[Ask, dict[str, Any]] = Batcher(
            self._answers, EXPLAINED, EXPLAINED_WAITING, "explaining"
        )

    async def recommend(self, ask: Ask) -> dict[str, Any]:
        """What `POST /recommend` says to this."""
        return await (self._explained if ask.explain else self._plain)(ask)

    async def follow(self) -> None:
        """Look for a newer generation, without end; one that cannot be loaded leaves the present one in use."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await asyncio.to_thread(self.renew)
            except Exception as error:
                logger.error("generation after %d cannot be loaded: %s", self.bundle.generation, error)

    def renew(self) -> None:
        """Take a newer generation where there is one."""
        if generations.newest(self.bundle.folder) > self.bundle.generation:
            self._take(self.bundle.renewed())

    def add_items(self, items: list[dict[str, Any]]) -> int:
        """Add items, see `Bundle.add_items`; returns the generation that has them, which is in use."""
        grown = self.bundle.add_items(items)  # to the newest generation, whichever is in use here
        self._take(grown)
        return grown.generation

    def _take(self, bundle: Bundle) -> None:
        if self._index:
            bundle.use_index(self._index)
        bundle.recommend([bundle.item_tokens[1:2]], 1)  # what is computed once, before anybody waits for it
        with self._exchange:
            if bundle.generation > self.bundle.generation:
                self.bundle = bundle
                self._metrics.generation.set(bundle.generation)
                logger.info("generation %d is in use", bundle.generation)

    def _answers(self, asked: list[Ask]) -> list[dict[str, Any] | Exception]:
        """What `POST /recommend` says to each, all by the same generation."""
        bundle, answers = self.bundle, dict[int, dict[str, Any] | Exception]()
        if not asked[0].explain:
            self._metrics.together.observe(len(asked))
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, ask in enumerate(asked):
            groups.setdefault(ask[2:], []).append(place)
        for (exclude_seen, allow, deny, explain), places in groups.items():
            histories, k = [asked[place].history for place in places], max(asked[place].k for place in places)
            try:
                found = bundle.recommend(histories, k, exclude_seen, allow, deny, explain)
            except Exception as error:  # of this group; the others have their answers
                answers.update(dict.fromkeys(places, error))
                continue
            for place, each in zip(places, found, strict=True):
                answers[place] = _said(bundle, asked[place].k, each)
        return [answers[place] for place in range(len(asked))]

    def close(self) -> None:
        self._plain.close()
        self._explained.close()


def knows(bundle: Bundle, token: str) -> bool:
    """Whether there is such an item."""
    try:
        bundle.item_id(token)
    except InputError:
        return False
    return True


def shown(bundle: Bundle, token: str) -> dict[str, Any]:
    """An item as pages show it, with its first code; for an unknown one, the token alone."""
    if not knows(bundle, token):
        return {"item": token, "title": "", "image": None, "code": None}
    image = f"/items/{quote(token, safe='')}/image" if bundle.image_file(token) else None
    first = next((code for code in codes_of(bundle, token)[:1] if code >= 0), None)
    return {"item": token, "title": bundle.title(token), "image": image, "code": first}


def codes_of(bundle: Bundle, token: str) -> list[int]:
    """Codes of an item (-1 where a signal is missing); none where there are no semantic IDs."""
    ids = bundle.catalogue.semantic_ids
    return [] if ids is None else ids.codes[bundle.item_id(token)].tolist()


def _said(bundle: Bundle, k: int, result: Recommendation) -> dict[str, Any]:
    items, scores, unknown = result
    best = zip(items[:k], scores, strict=False)
    answer = [{**shown(bundle, item), "score": score, "why": None} for item, score in best]
    for entry, reason in zip(answer, getattr(result, "reasons", ()), strict=False):
        by = reason.item
        entry["why"] = {
            "signal": reason.signal,
            "share": reason.share,
            "by": None if by is None else {"item": by, "title": bundle.title(by)},
            "shared_codes": [] if by is None else bundle.shared_codes(entry["item"], by),
        }
    return {"items": answer, "unknown": unknown, "generation": bundle.generation}


def require(bundle: Bundle, token: str) -> str:
    """The token of an item; an `UnknownItemError` where there is none."""
    if not knows(bundle, token):
        raise UnknownItemError(f"item: found {token!r}, which this catalogue does not hold; see GET /items?q=")
    return token


class UnknownItemError(InputError):
    """An item was asked for that is not there."""
