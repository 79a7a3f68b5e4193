"""Items by the words of their titles."""

import re
import unicodedata
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence


def words_of(text: str) -> list[str]:
    """Return the words of a text as they are compared: in lower case, without accents."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return re.findall(r"\w+", "".join(letter for letter in plain if not unicodedata.combining(letter)))


class TitleIndex:
    """Finds items whose title has all words that are asked for, each whole or as the beginning of one.

    Parameters
    ----------
    tokens, titles : of the items, by item id.
    """

    def __init__(self, tokens: Sequence[str], titles: Sequence[str]) -> None:
        self._tokens, self._titles = tokens, titles
        found: dict[str, list[int]] = defaultdict(list)
        for item, title in enumerate(titles):
            for word in set(words_of(title)):
                found[word].append(item)
        self._words, self._items = sorted(found), found

    def find(self, words: str, limit: int) -> list[int]:
        """Return at most `limit` item ids: titles that are just these words first, then those with fewest others."""
        asked = words_of(words)
        if not asked:
            return []
        chosen = set.intersection(*(self._having(word) for word in asked))
        whole = set(asked)

        def order(item: int) -> tuple[int, int, str, str]:
            title = words_of(self._titles[item])
            return len(whole.difference(title)), len(title), self._titles[item], self._tokens[item]

        return sorted(chosen, key=order)[:limit]

    def _having(self, beginning: str) -> set[int]:
        found: set[int] = set()
        for at in range(bisect_left(self._words, beginning), len(self._words)):
            if not self._words[at].startswith(beginning):
                break
            found.update(self._items[self._words[at]])
        return found
