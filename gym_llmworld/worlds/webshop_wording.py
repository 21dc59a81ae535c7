"""WebShop's pages as the embedded models write them: shorter, and easier to copy.

A page of the shop repeats the instruction and its buttons, and puts one and the same separator
between everything else. What a small model does well is to find the last two tokens earlier in the
conversation and to copy what followed them; behind ``large [SEP]`` ten products go on in ten ways.
So each product gets a *row*, and the row's name stands where the separator was::

    item row 2 size row 2 medium row 2 large row 2 Ivoret Nest Rain Coat row 2 $45.99

The hidden context words its products the same way. Actions end with the page that they are taken
on and, before a purchase, with the options chosen so far, which no page shows. `ShopWording.read`
turns what the model wrote into the page; nothing in it looks anything up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gym_llmworld.core import Scenario
from gym_llmworld.worlds.webshop_text import (
    BUY,
    SEP,
    SUB_PAGES,
    Page,
    done_page,
    index_page,
    item_page,
    page_json,
    read_action,
    read_instruction,
    read_page,
    results_page,
    sub_page,
)

HOME = "home"
# Which cells of a receipt say what was bought, with which options, and what it earned.
_ASIN, _CHOSEN, _SCORE = map(done_page("A", "C", "S").split(SEP).index, "ACS")
_SUB_KINDS = tuple(page.lower() for page in SUB_PAGES)
_COUNTS = ("none", "one", "two", "three", "four")
_ROW = re.compile(r" row \d+ ")
_RESULTS = re.compile(r"page (\d{1,9}) of (\d{1,9}) results((?: row \d+ .+)?)")
_ITEM = re.compile(r"item( row \d+ .+)")
_SUB = re.compile(r"(?:description|features|reviews) row \d+(?: (.+))?")
_NEXT_CELL = re.compile(r" row \d+ / row \d+ ")
_SENTENCE = re.compile(r"([.:]) row \d+ ")
_BOUGHT = re.compile(
    rf"bought row \d+ (\S+?)((?:, [^,:]+: [^,]+)*) row \d+ (?:{'|'.join(_COUNTS)}) (\S+)"
)


def row(number: int) -> str:
    """Returns what stands between the cells of a product."""
    return f" row {number} "


def word_results(number: int, total: int, rows: Sequence[tuple[int, Sequence[str]]]) -> str:
    """Words a page of results.

    Args:
        number: Of the page.
        total: Of all results.
        rows: Of each product its row, and asin, title and price.
    """
    cells = "".join(row(k) + cell for k, product in rows for cell in product)
    return f"page {number} of {total} results{cells}"


def word_item(k: int, cells: Sequence[str], title: str, price: str) -> str:
    """Words the page of the product of row ``k``; ``cells`` are names and values of options."""
    return "item" + "".join(row(k) + cell for cell in (*cells, title, price))


def word_sub(kind: str, k: int, content: Sequence[str]) -> str:
    """Words a description, features or reviews."""
    told = f"{row(k)}/{row(k)}".join(content).replace(", ", row(k))
    for end in (".", ":"):
        told = told.replace(f"{end} ", f"{end}{row(k)}")
    return f"{kind} row {k} {told}".rstrip()


def word_scores(k: int, asin: str, scores: Sequence[float]) -> str:
    """Words what a purchase earns with none, one, ... of the wanted options chosen."""
    earned = "".join(f"{row(k)}{count} {s}" for count, s in zip(_COUNTS, scores, strict=False))
    return f"bought row {k} {asin}{earned}"


class ShopWording:
    """The wording of one episode.

    Args:
        scenario: Its hidden products have the first rows, in their order.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._instruction = scenario.instruction
        self._rows: dict[str, int] = {}
        self._option_names = {name for name, _ in read_instruction(scenario.instruction).options}
        for product in scenario.hidden.get("products", ()):
            self._row_of(product["asin"])
            self._option_names.update(name for name, _ in product["options"])
        self._page, self._kind = Page("index", scenario.instruction), "item"
        self._row = self._number = 0
        self._chosen: dict[str, str] = {}

    def cue(self, action: str) -> str:
        """Returns the page that the action is taken on; before a purchase, the chosen options."""
        if self._page.kind == "results":
            known = self._rows.get(_argument(action))
            return f" page {self._page.number}" + (f", row {known}" if known else "")
        if self._page.kind in ("item", "sub"):
            chosen = _listed(self._chosen) if _argument(action) == BUY.lower() else ""
            return f" {self._kind}, row {self._row}, page {self._number}{chosen}"
        return f" {HOME}"

    def write(self, action: str, observation: str) -> str:
        """Returns the short form of a page, the page itself if that would lose something."""
        page = read_page(observation)
        self._follow(action, page)
        short = self._short(page, observation)
        return short if short is not None and self.read(short) == observation else observation

    def read(self, text: str) -> str:
        """Returns the page that a short form stands for."""
        wish = self._instruction
        if text == HOME:
            return index_page(wish)
        if match := _RESULTS.fullmatch(text):
            cells = _ROW.split(match[3])[1:]
            if len(cells) % 3 == 0:
                rows = list(zip(cells[::3], cells[1::3], cells[2::3], strict=True))
                return results_page(wish, int(match[1]), int(match[2]), rows)
        if match := _ITEM.fullmatch(text):
            cells = _ROW.split(match[1])[1:]
            if len(cells) > 1:
                return item_page(wish, (*cells[:-1], f"Price: {cells[-1]}"))
        if match := _SUB.fullmatch(text):
            cells = _NEXT_CELL.split(match[1]) if match[1] else []
            return sub_page(wish, [_plain(cell) for cell in cells])
        if match := _BOUGHT.fullmatch(text):
            pairs = [option.split(": ", 1) for option in match[2].split(", ")[1:]]
            return done_page(match[1], page_json(dict(pairs)), match[3])
        return text

    def _short(self, page: Page, observation: str) -> str | None:
        if page.kind == "index":
            return HOME
        if page.kind == "results":
            total = re.search(r"\(Total results: (\d+)\)", observation)
            rows = [(self._row_of(cells[0]), cells) for cells in page.rows]
            return word_results(page.number, int(total[1]), rows) if total else None
        if page.kind == "item":
            return word_item(self._row, page.body, page.title, page.price)
        if page.kind == "sub":
            return word_sub(self._kind, self._row, page.content)
        cells = observation.split(SEP)
        if page.kind == "done" and len(cells) > _SCORE:
            return self._receipt(cells[_ASIN], cells[_CHOSEN], cells[_SCORE])
        return None

    def _receipt(self, asin: str, options: str, score: str) -> str | None:
        try:
            chosen = json.loads(options)
        except (ValueError, RecursionError):
            return None
        if not isinstance(chosen, dict) or not all(isinstance(v, str) for v in chosen.values()):
            return None
        wanted = read_instruction(self._instruction).options
        matched = sum(value in chosen.values() for _, value in wanted)
        k = self._row_of(asin)
        return f"bought row {k} {asin}{_listed(chosen)}{row(k)}{_COUNTS[min(matched, 4)]} {score}"

    def _follow(self, action: str, page: Page) -> None:
        """Notes where the agent is now, and what it has chosen."""
        argument = _argument(action)
        if page.kind == "item" and argument in self._rows and self._page.kind == "results":
            self._row, self._chosen = self._rows[argument], {}
        elif page.kind == "item" and self._page.kind == "item":
            name = self._option_of(argument)
            if name is not None:
                self._chosen[name] = argument
        if page.kind == "results":
            self._number = page.number
        elif page.kind == "sub" and argument in _SUB_KINDS:
            self._kind = argument
        elif page.kind == "item":
            self._kind = "item"
        if page.kind != "unknown":
            self._page = page

    def _option_of(self, value: str) -> str | None:
        """Returns which option of the present page has a value."""
        name = None
        for cell in self._page.body:
            if cell in self._option_names:
                name = cell
            elif cell.lower() == value:
                return name
        return None

    def _row_of(self, asin: str) -> int:
        return self._rows.setdefault(asin.lower(), len(self._rows) + 1)


def _plain(cell: str) -> str:
    return _ROW.sub(", ", _SENTENCE.sub(r"\1 ", cell))


def _argument(action: str) -> str:
    read = read_action(action)
    return read[1] if read else ""


def _listed(chosen: Mapping[str, Any]) -> str:
    return "".join(f", {name}: {value}" for name, value in sorted(chosen.items()))


def context_lines(hidden: Mapping[str, Any]) -> Iterator[str]:
    """Yields the hidden facts of a scenario in the words of the chat."""
    products = hidden["products"]
    rows = [(k, (p["asin"], p["title"], p["price"])) for k, p in enumerate(products, start=1)]
    yield f"search[{hidden['query']}] {HOME} {word_results(1, hidden['total'], rows)}"
    for k, product in enumerate(products, start=1):
        cells = [cell for name, values in product["options"] for cell in (name, *values)]
        yield word_item(k, cells, product["title"], product["price"])
        yield word_sub("description", k, (product["description"],))
        yield word_sub("features", k, product["bullets"])
        yield word_scores(k, product["asin"], product["scores"])
