"""Products and goals as WebShop's engine knows them, built from records in WebShop's schemas."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gym_llmworld.real.webshop_search import SearchIndex
from gym_llmworld.worlds.webshop_text import item_body

MAX_ASIN = 10
CATEGORY_SEPARATOR = "\u203a"
_MISSING_PRICE = 100.0
_PRICE_STEPS = tuple(range(10, 1000, 10))
_NO_LIMIT = 1_000_000.0
_GOAL_ORDER_SEED = 233


@dataclass(frozen=True)
class Product:
    """Something to buy.

    Attributes:
        asin: Identifies it.
        title: Its name.
        description: Shown on its description page.
        bullets: Shown on its features page.
        prices: Lowest and highest.
        price: What it costs when bought.
        category: Top category.
        query: The search that found it when the data were made.
        path: The parts of its product category.
        options: Names and values to choose from, in lower case.
        attributes: What it is or has.
    """

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    prices: tuple[float, ...]
    price: float
    category: str
    query: str
    path: tuple[str, ...]
    options: tuple[tuple[str, tuple[str, ...]], ...]
    attributes: tuple[str, ...]

    @cached_property
    def price_text(self) -> str:
        """The price as pages print it."""
        return " to ".join(f"${price}" for price in self.prices)

    @cached_property
    def row(self) -> tuple[str, str, str]:
        """Asin, title and price, as results list them."""
        return (self.asin, self.title, self.price_text)

    @cached_property
    def body(self) -> tuple[str, ...]:
        """What its own page says of it."""
        return item_body(self.options, self.title, self.price_text)

    @cached_property
    def choices(self) -> Mapping[str, str]:
        """Value -> name of the option; of values that two options share, the last counts."""
        return {value: name for name, values in self.options for value in values}

    @cached_property
    def document(self) -> str:
        """What the search engine reads of it: of the features only the first."""
        offered = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options)
        parts = (self.title, self.description, *self.bullets[:1], offered)
        return " ".join(parts).lower()


@dataclass(frozen=True)
class Goal:
    """What a customer wants.

    Attributes:
        asin: Of the product that the goal was made from.
        instruction: As the customer says it, price limit included.
        attributes: What the product has to be or have.
        options: Wanted values; their names, where known, are ``names``.
        names: Option names, or empty for a person's goal.
        price_upper: The price has to be lower or equal.
    """

    asin: str
    instruction: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]
    names: tuple[str, ...]
    price_upper: float


@dataclass(frozen=True)
class Catalogue:
    """A shop: its products, its goals, its search engine.

    Attributes:
        name: Says which, for messages.
        products: In the order of their asins, which breaks ties of the search.
        goals: In WebShop's order: shuffled.
        searches: What was found so far, by the words asked for.
    """

    name: str
    products: tuple[Product, ...]
    goals: tuple[Goal, ...]
    searches: dict[tuple[str, ...], tuple[Product, ...]] = field(default_factory=dict, repr=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Catalogue:
        """Returns itself: a shop does not change, and forks share it."""
        return self

    @cached_property
    def by_asin(self) -> Mapping[str, Product]:
        """The products by asin."""
        return {product.asin: product for product in self.products}

    @cached_property
    def index(self) -> SearchIndex:
        """The search engine."""
        return SearchIndex([product.document for product in self.products])

    def search(self, words: tuple[str, ...]) -> tuple[Product, ...]:
        """Returns at most 50 products, best first."""
        found = self.searches.get(words)
        if found is None:
            found = tuple(self.products[i] for i in self.index.top(" ".join(words)))
            if len(self.searches) >= 4096:
                self.searches.clear()
            self.searches[words] = found
        return found


def build_catalogue(
    name: str,
    products: Iterable[Mapping[str, Any]],
    attributes: Mapping[str, Mapping[str, Any]],
    human: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    *,
    seed: int = 0,
) -> Catalogue:
    """Builds a shop from records in WebShop's schemas (``items_shuffle``, ``items_ins_v2``).

    Args:
        name: Says which shop.
        products: Complete records; asins of more than ten characters and repeated ones are left
            out, as WebShop does.
        attributes: Asin -> attributes, and for some an instruction with its attributes.
        human: Asin -> instructions that people wrote (``items_human_ins``). None makes WebShop's
            synthetic goals: every combination of options of every product with an instruction.
        seed: Of the prices: WebShop draws a price where a product has a range of them, and the
            limit of a goal. (There it follows from the process' own random state.)
    """
    draw = random.Random(f"{name}/{seed}")
    known: dict[str, Product] = {}
    for record in products:
        asin = str(record["asin"])
        if asin not in known and len(asin) <= MAX_ASIN:
            known[asin] = _product(record, attributes.get(asin, {}), draw)
    made = _synthetic(known, attributes, draw) if human is None else _human(known, human, draw)
    goals = list(made)
    random.Random(_GOAL_ORDER_SEED).shuffle(goals)
    ordered = tuple(known[asin] for asin in sorted(known))
    return Catalogue(name, ordered, tuple(goals))


def _product(record: Mapping[str, Any], extra: Mapping[str, Any], draw: random.Random) -> Product:
    prices = tuple(
        float(price.replace(",", ""))
        for price in re.findall(r"[\d,]*\d(?:\.\d+)?", record["pricing"])
    )[:2] or (_MISSING_PRICE,)
    bullets = record["small_description"]
    return Product(
        asin=str(record["asin"]),
        title=record["name"].strip(),
        description=record["full_description"].strip(),
        bullets=tuple(b.strip() for b in ([bullets] if isinstance(bullets, str) else bullets)),
        prices=prices,
        price=prices[0] if len(prices) == 1 else draw.uniform(*prices),
        category=record["category"],
        query=record["query"].lower().strip(),
        path=tuple(part.strip() for part in record["product_category"].split(CATEGORY_SEPARATOR)),
        options=_options(record["customization_options"]),
        attributes=tuple(extra.get("attributes") or ()),
    )


def _options(
    offered: Mapping[str, Sequence[Mapping[str, Any]] | None] | str,
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if isinstance(offered, str):
        return ()
    named = (
        (name.lower(), tuple(_value(choice["value"]) for choice in choices or ()))
        for name, choices in offered.items()
    )
    return tuple((name, values) for name, values in named if values)


def _value(text: str) -> str:
    return text.strip().replace("/", " | ").lower()


def _limit(price: float, draw: random.Random) -> float:
    """Draws a price limit from the next four multiples of ten."""
    above = [step for step in _PRICE_STEPS if step > price][:4]
    return float(max(draw.sample(above, 2))) if len(above) >= 2 else _NO_LIMIT


def _limit_text(limit: float) -> str:
    return "" if limit == _NO_LIMIT else f", and price lower than {limit:.2f} dollars"


def _synthetic(
    products: Mapping[str, Product],
    attributes: Mapping[str, Mapping[str, Any]],
    draw: random.Random,
) -> Iterator[Goal]:
    for asin, product in products.items():
        facts = attributes.get(asin, {})
        wanted = tuple(facts.get("instruction_attributes") or ())
        if not facts.get("instruction") or not wanted:
            continue
        offered = dict(product.options)
        names = tuple(sorted(offered))
        for values in itertools.product(*(offered[name] for name in names)):
            limit = _limit(product.price, draw)
            chosen = ", and ".join(f"{n}: {v}" for n, v in zip(names, values, strict=True))
            text = facts["instruction"].strip(".") + (f" with {chosen}" if chosen else "")
            yield Goal(asin, text + _limit_text(limit), wanted, values, names, limit)


def _human(
    products: Mapping[str, Product],
    human: Mapping[str, Sequence[Mapping[str, Any]]],
    draw: random.Random,
) -> Iterator[Goal]:
    for asin, product in products.items():
        for written in human.get(asin, ()):
            wanted = tuple(written["instruction_attributes"])
            if not wanted:
                continue
            limit = _limit(product.price, draw)
            text = written["instruction"].strip(".") + _limit_text(limit)
            yield Goal(asin, text, wanted, tuple(written["instruction_options"]), (), limit)
