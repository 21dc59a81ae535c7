"""WebShop's search: BM25 over stemmed words, as its Lucene index does it, by ``bm25s``."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence

from gym_llmworld.errors import MissingDependency

MAX_RESULTS = 50

# Module -> distribution.
_EXTRA = {"bm25s": "bm25s", "Stemmer": "PyStemmer", "rapidfuzz": "rapidfuzz"}

_TOKEN = re.compile(r"\w+(?:[.:'\u2019]\w+)*")
# Lucene's English stop words.
_STOP_WORDS = frozenset(
    re.findall(
        r"\S+",
        "a an and are as at be but by for if in into is it no not of on or such that the their "
        "then there these they this to was will with",
    )
)


def check_extra() -> None:
    """Checks that what a shop in this process needs is installed.

    Raises:
        MissingDependency: Something is not.
    """
    for module, distribution in _EXTRA.items():
        if importlib.util.find_spec(module) is None:
            raise MissingDependency(distribution, "webshop")


class SearchIndex:
    """Finds documents by words.

    Args:
        documents: In the order that breaks ties.

    Raises:
        MissingDependency: The webshop extra is not installed.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        check_extra()
        import bm25s
        import Stemmer

        self._stem = Stemmer.Stemmer("porter").stemWords
        # Lucene's defaults in Pyserini, which WebShop uses.
        self._scorer = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
        tokens = [self._tokens(document) for document in documents]
        self._known = {token for document in tokens for token in document}
        if self._known:
            self._scorer.index(tokens, show_progress=False)

    def _tokens(self, text: str) -> list[str]:
        found = (token.removesuffix("'s") for token in _TOKEN.findall(text.lower()))
        stems: list[str] = self._stem([token for token in found if token not in _STOP_WORDS])
        return stems

    def top(self, query: str) -> list[int]:
        """Returns the positions of the best documents, best first; at most 50."""
        known = [token for token in self._tokens(query) if token in self._known]
        if not known:
            return []
        scores = self._scorer.get_scores(known)
        best = (-scores).argsort(kind="stable")[:MAX_RESULTS]
        return [int(i) for i in best if scores[i] > 0]
