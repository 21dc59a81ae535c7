"""Reads the products and goals of a user's own WebShop clone, and says which line is damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gym_llmworld.errors import DataError, ScenarioError
from gym_llmworld.real.webshop_catalogue import Catalogue, build_catalogue

# Newest choice first: the small build that everybody evaluates on, then the whole.
PRODUCTS = ("items_shuffle_1000.json", "items_shuffle.json")
ATTRIBUTES = ("items_ins_v2_1000.json", "items_ins_v2.json")
HUMAN = ("items_human_ins.json",)
_PLACES = ("", "data", "search_engine/data", "webshop_minimal/data", "webshop/data")

_PRODUCT_FIELDS: dict[str, tuple[type, ...]] = {
    "asin": (str,),
    "name": (str,),
    "full_description": (str,),
    "small_description": (list, str),
    "pricing": (str,),
    "images": (list,),
    "product_category": (str,),
    "category": (str,),
    "query": (str,),
    "customization_options": (dict, str),
}


def read_checkout(folder: str) -> Catalogue:
    """Reads the shop of a clone of WebShop or webshop-minimal.

    The bundled engine plays on these files; nothing of the clone is run. Goals are the ones that
    people wrote where ``items_human_ins.json`` is there and names products of this build, else
    WebShop's synthetic ones.

    Args:
        folder: The clone, or the folder with its data files.

    Raises:
        ScenarioError: Folder or files are missing.
        DataError: A file is damaged; the message names file, line and field.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ScenarioError(f"no folder at {root}; expected a clone of WebShop")
    products, attributes = _find(root, PRODUCTS), _find(root, ATTRIBUTES)
    for found, names in ((products, PRODUCTS), (attributes, ATTRIBUTES)):
        if found is None:
            raise ScenarioError(
                f"none of {', '.join(names)} in {root} or its data folder; expected the files that "
                "WebShop's setup.sh downloads"
            )
    assert products is not None
    assert attributes is not None
    human = _find(root, HUMAN)
    files = (products, attributes, *([human] if human else []))
    return _read(tuple((file, file.stat().st_mtime_ns) for file in files))


def _find(root: Path, names: tuple[str, ...]) -> Path | None:
    places = (root / place / name for name in names for place in _PLACES)
    return next((path for path in places if path.is_file()), None)


@lru_cache(maxsize=2)
def _read(files: tuple[tuple[Path, int], ...]) -> Catalogue:
    products, attributes, *human = (file for file, _ in files)
    records = list(read_products(products))
    facts = _read_object(attributes)
    written = _read_object(human[0]) if human else {}
    used = {asin: goals for asin, goals in written.items() if asin in {r["asin"] for r in records}}
    name = f"checkout/{products.name}"
    return build_catalogue(name, records, facts, _checked_goals(used, human) or None)


def read_products(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yields the products of a JSON array in WebShop's ``items_shuffle`` schema.

    A text that is ``null`` counts as empty.

    Raises:
        DataError: The file is damaged or a field is missing; the message names line and field.
    """
    text = file.read_text(encoding="utf-8")
    for number, (line, record) in enumerate(_items(text, file), start=1):
        where = f"{file}, line {line} (product {number})"
        if not isinstance(record, dict):
            raise DataError(f"{where}: expected an object, got {type(record).__name__}")
        for field, types in _PRODUCT_FIELDS.items():
            if field not in record:
                raise DataError(
                    f"{where}: the field {field!r} is missing; expected all of "
                    f"{', '.join(_PRODUCT_FIELDS)}"
                )
            if record[field] is None and str in types:
                # Nothing is written in both ways.
                record[field] = ""
            if not isinstance(record[field], types):
                raise DataError(
                    f"{where}: {field!r} has to be {' or '.join(t.__name__ for t in types)}, got "
                    f"{type(record[field]).__name__}"
                )
        _check_options(record["customization_options"], where)
        yield record


def _check_options(options: Any, where: str) -> None:
    if isinstance(options, str):
        return
    for name, choices in options.items():
        for choice in choices or ():
            if not isinstance(choice, dict) or not isinstance(choice.get("value"), str):
                raise DataError(
                    f"{where}: every choice of the option {name!r} needs a 'value', got "
                    f"{choice!r:.80}"
                )


def _items(text: str, file: Path) -> Iterator[tuple[int, Any]]:
    """Yields the items of a JSON array with the lines on which they begin."""
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    position = _skip(text, 0)
    if text[position : position + 1] != "[":
        raise DataError(f"{file}, line 1: expected a JSON array of products, got {text[:20]!r}")
    position = _skip(text, position + 1)
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            item, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}, line {error.lineno}: no JSON ({error.msg})") from error
        yield line, item
        position = _skip(text, end)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            last = text.count("\n", 0, position) + 1
            raise DataError(f"{file}, line {last}: expected ',' or ']', the file may be cut off")


def _skip(text: str, position: int) -> int:
    while text[position : position + 1].isspace():
        position += 1
    return position


def _read_object(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {error.lineno}: no JSON ({error.msg})") from error
    if not isinstance(data, dict):
        raise DataError(f"{file}: expected an object by asin, got {type(data).__name__}")
    return data


def _checked_goals(goals: dict[str, Any], file: list[Path]) -> dict[str, Any]:
    for asin, written in goals.items():
        for goal in written:
            for field in ("instruction", "instruction_attributes", "instruction_options"):
                if field not in goal:
                    raise DataError(
                        f"{file[0]}, {asin}: the field {field!r} is missing from a goal"
                    )
    return goals
