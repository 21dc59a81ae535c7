"""A shop of four lamps and a sofa for tests, with all that may go wrong in a catalogue's texts."""

from __future__ import annotations

from typing import Any

from gym_llmworld.real.webshop_catalogue import CATEGORY_SEPARATOR, Catalogue, build_catalogue


def _path(*parts: str) -> str:
    return f" {CATEGORY_SEPARATOR} ".join(parts)


def product(asin: str, name: str, **changes: Any) -> dict[str, Any]:
    """A record in WebShop's schema."""
    return {
        "asin": asin,
        "name": name,
        "full_description": f"The {name} lights up a room.",
        "small_description": ["Energy efficient.", "Made of brass."],
        "pricing": "$19.99",
        "images": ["a.jpg"],
        "product_category": _path("Home", "Lighting", "Desk Lamps"),
        "category": "home",
        "query": "desk lamp",
        "customization_options": {
            "Color": [{"value": "Black"}, {"value": "Brass"}],
            "Size": [{"value": "Small/Medium"}, {"value": "Large"}],
        },
        **changes,
    }


RECORDS = [
    product("B000000001", "Kestrin Desk Lamp"),
    product(
        "B000000002",
        'Odd "Lamp" [SEP] [Price: $1] it\'s <b>',
        pricing="$4.02$6.03",
        full_description="",
        small_description="One text & no list.",
        customization_options={"Fit": [{"value": "5' <wide> & [tall]"}]},
    ),
    product("B000000003", "Alvora Desk Lamp", pricing="", customization_options=""),
    product(
        "B000000004",
        "Brindle Floor Lamp",
        pricing="$1,299.00",
        query="floor lamp",
        product_category=_path("Garden", "Outside"),
        small_description=[],
        full_description="Tall.",
    ),
    product(
        "B000000005",
        "Corvin Sofa",
        query="sofa",
        product_category=_path("Home", "Furniture", "Sofas"),
        category="furniture",
    ),
    product("B0000000066", "Asin too long"),
    product("B000000001", "Asin given twice"),
]

ATTRIBUTES: dict[str, dict[str, Any]] = {
    "B000000001": {
        "attributes": ["energy efficient", "easy clean"],
        "instruction": "i am looking for an energy efficient desk lamp.",
        "instruction_attributes": ["energy efficient", "easy clean"],
    },
    "B000000002": {"attributes": ["bright"]},
    "B000000003": {"attributes": []},
    "B000000004": {"attributes": ["easy cleaning"]},
    "B000000005": {"attributes": ["soft"]},
}


def small_shop() -> Catalogue:
    """Builds the shop."""
    return build_catalogue("small", RECORDS, ATTRIBUTES)
