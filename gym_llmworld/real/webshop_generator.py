"""Makes shops: products and customers' wishes, in WebShop's schemas, from a seed.

The words are in `webshop_words`. Nothing is taken from a real shop.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from gym_llmworld.real.webshop_catalogue import CATEGORY_SEPARATOR, Catalogue, build_catalogue
from gym_llmworld.real.webshop_words import (
    BRANDS,
    CATALOGUE_VERSION,
    DESCRIPTIONS,
    LAST_FEATURES,
    REQUESTS,
    SECTIONS,
    SERIES,
    TITLE_FORMS,
    Section,
)

PRODUCTS = 3000
"""Products of a shop."""

# All shops share these numbers, so that no number means a product by itself.
_ASIN_NUMBERS = 5000
_CENTS = (0.0, 0.49, 0.95, 0.99)
_RANGE_SHARE = 0.1
_OPTION_COUNTS = (0, 1, 1, 1, 1, 2, 2, 2, 2, 2)
_MAX_VALUES = 5


@lru_cache(maxsize=8)
def generated_catalogue(seed: int, products: int = PRODUCTS) -> Catalogue:
    """Builds the shop of a seed; the same seed gives the same shop, everywhere.

    Args:
        seed: Which shop.
        products: How many it sells.
    """
    records, attributes = generate_records(seed, products)
    return build_catalogue(f"generated/{seed}", records, attributes, seed=seed)


def generate_records(
    seed: int, products: int = PRODUCTS
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Makes the records of a shop.

    Returns:
        Products in the schema of ``items_shuffle.json``, and attributes and instructions in the
        schema of ``items_ins_v2.json``.
    """
    draw = random.Random(f"webshop/{CATALOGUE_VERSION}/{seed}")
    kinds = [(section, kind) for section in SECTIONS for kind in section.kinds]
    numbers = draw.sample(range(_ASIN_NUMBERS), products)
    records, attributes, titles = [], {}, set[str]()
    for position, number in enumerate(numbers):
        section, kind = kinds[position % len(kinds)]
        has = draw.sample(section.attributes, draw.choice((3, 3, 4)))
        title = _title(kind, has[0], titles, draw)
        asin = f"B0{number:04d}"
        records.append(_record(asin, title, kind, has, section, draw))
        wanted = draw.sample(has, draw.choice((2, 2, 3)))
        attributes[asin] = {
            "attributes": has,
            "instruction": draw.choice(REQUESTS).format(kind=kind, attributes=" and ".join(wanted)),
            "instruction_attributes": wanted,
        }
    return records, attributes


def _title(kind: str, attribute: str, taken: set[str], draw: random.Random) -> str:
    while True:
        title = draw.choice(TITLE_FORMS).format(
            brand=draw.choice(BRANDS),
            series=draw.choice(SERIES),
            attribute=attribute.title(),
            kind=kind.title(),
        )
        if title not in taken:
            taken.add(title)
            return title


def _record(
    asin: str,
    title: str,
    kind: str,
    has: Sequence[str],
    section: Section,
    draw: random.Random,
) -> dict[str, Any]:
    words: Mapping[str, str] = {
        "title": title,
        "kind": kind,
        "material": draw.choice(section.materials),
        "place": draw.choice(section.places),
    }
    brand = title.partition(" ")[0]
    return {
        "asin": asin,
        "name": title,
        "full_description": draw.choice(DESCRIPTIONS).format(**words),
        "small_description": [
            f"{brand} {kind}: {', '.join(has)}",
            draw.choice(LAST_FEATURES).format(**words),
        ],
        "pricing": _pricing(section, draw),
        "images": [f"{asin}.jpg"],
        "product_category": f" {CATEGORY_SEPARATOR} ".join((*section.path, kind.title())),
        "category": section.path[0].lower(),
        "query": kind,
        "customization_options": _offered(section, draw),
    }


def _pricing(section: Section, draw: random.Random) -> str:
    low = draw.randint(*section.prices) + draw.choice(_CENTS)
    if draw.random() >= _RANGE_SHARE:
        return f"${low}"
    return f"${low}${round(low + draw.randint(2, 15), 2)}"


def _offered(section: Section, draw: random.Random) -> dict[str, list[dict[str, str]]] | str:
    count = draw.choice(_OPTION_COUNTS)
    chosen = sorted(draw.sample(range(len(section.options)), count))
    offered = {}
    for name, pool in (section.options[i] for i in chosen):
        size = draw.randint(2, min(_MAX_VALUES, len(pool)))
        kept = sorted(draw.sample(range(len(pool)), size))
        offered[name] = [{"value": pool[i]} for i in kept]
    return offered or ""
