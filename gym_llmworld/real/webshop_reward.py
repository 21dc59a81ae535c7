"""WebShop's reward of a purchase (Yao et al., arXiv 2207.01206, section 3 and appendix).

``type * (attributes + options + [price is low enough]) / (wanted attributes + wanted options + 1)``
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from gym_llmworld.real.webshop_catalogue import Goal, Product

_SIMILAR = 85
_COLORS = (
    *("beige", "black", "blue", "brown", "brass", "bronze", "burgundy", "copper", "coral", "cream"),
    *("gold", "gray", "green", "grey", "ivory", "khaki", "navy", "nickel", "orange", "pink"),
    *("purple", "red", "silver", "tan", "teal", "white", "yellow"),
)
# What is no noun in a title; WebShop asks spaCy, whose models cannot be installed from PyPI.
_NO_NOUNS = frozenset(
    re.findall(
        r"\S+",
        "and for with the set from into your our new men women mens womens kids free high low long "
        "short soft large small medium extra non easy fast super ultra deep wide slim",
    )
)


def score(product: Product, chosen: Iterable[str], goal: Goal, target: Product) -> float:
    """Returns the reward of a purchase, in [0, 1].

    Args:
        product: What was bought.
        chosen: The chosen values of its options.
        goal: What was wanted.
        target: The product that the goal was made from.
    """
    matched = options_matched(tuple(chosen), goal)
    return scores_by_options(product, goal, target)[matched]


def scores_by_options(product: Product, goal: Goal, target: Product) -> tuple[float, ...]:
    """Returns the reward of buying a product with 0, 1, ... of the wanted options chosen."""
    kind = type_factor(product, target)
    earned = attributes_matched(product, goal) + (product.price <= goal.price_upper)
    wanted = len(goal.attributes) + len(goal.options) + 1
    return tuple(kind * ((earned + k) / wanted) for k in range(len(goal.options) + 1))


def attributes_matched(product: Product, goal: Goal) -> int:
    """Counts the wanted attributes that a product has, or that its text mentions."""
    text = " ".join((product.title, *product.bullets, product.description)).lower()
    return sum(
        any(_similar(own, wanted) for own in product.attributes) or wanted.lower() in text
        for wanted in goal.attributes
    )


def options_matched(chosen: Sequence[str], goal: Goal) -> int:
    """Counts the wanted options that were chosen."""
    have = [_plain_color(value) for value in chosen]
    return sum(any(_similar(own, _plain_color(w)) for own in have) for w in goal.options)


def type_factor(product: Product, target: Product) -> float:
    """Returns how much a product is of the wanted kind: 1, 0.5, 0.1 or 0."""
    wanted = nouns(target.title)
    common = len(wanted & nouns(product.title)) / len(wanted) if wanted else 0.2
    if common == 0:
        return 0.0
    if common < 0.1:
        return 0.1
    same_query = product.query == target.query
    return 1.0 if same_query or len({*product.path} & {*target.path}) >= 2 or common > 0.2 else 0.5


@lru_cache(maxsize=8192)
def nouns(title: str) -> frozenset[str]:
    """Returns the words of a title that may be nouns, in lower case."""
    words = re.findall(r"[a-z][a-z'-]{2,}", title.lower())
    return frozenset(word for word in words if word not in _NO_NOUNS)


def _plain_color(value: str) -> str:
    return next((color for color in _COLORS if color in value), value)


@lru_cache(maxsize=65536)
def _similar(a: str, b: str) -> bool:
    from rapidfuzz import fuzz, utils

    return round(fuzz.token_set_ratio(a, b, processor=utils.default_process)) > _SIMILAR
