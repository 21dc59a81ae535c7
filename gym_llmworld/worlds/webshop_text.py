"""WebShop's pages and goals as text: how they are worded, and how they are read.

The wording is that of WebShop's ``text`` observations (Yao et al., arXiv 2207.01206), the list of
admissible actions that of AgentGym's client, which Word2World's checkpoints were trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

SEP = " [SEP] "
SEARCH_TEMPLATE = "search[<your query>]"
BACK, PREVIOUS, NEXT, BUY = "Back to Search", "< Prev", "Next >", "Buy Now"
SUB_PAGES = ("Description", "Features", "Reviews")
THANKS = "Thank you for shopping with us!"
PER_PAGE = 10

# As Flask writes JSON into a page.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "'": "\\u0027"}
_BLOCK = "\n\nYour admissible actions of the current situation are: \n"
_PAGE = re.compile(r"Page (\d{1,9}) \(Total results: (\d{1,9})\)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_PRICE_LIMIT = re.compile(r",? and price lower than (\d+(?:\.\d+)?) dollars")
_OPTIONS = re.compile(r"(?: with|, and) ((?:(?! with )[^:,])+): ([^,]+)")
_FILLERS = frozenset(
    re.findall(
        r"\S+",
        "a an am and are buy can find for get i id is like looking me my need of or please "
        "shopping some that the to under want which with would",
    )
)

PageKind = Literal["index", "results", "item", "sub", "done", "unknown"]


def instruction_lead(instruction: str) -> tuple[str, ...]:
    """Returns how every page but the last begins."""
    return ("Instruction:", instruction)


def index_page(instruction: str) -> str:
    """Words the page with the search bar."""
    return SEP.join(("WebShop", *instruction_lead(instruction), "Search"))


def results_page(
    instruction: str, number: int, total: int, rows: Sequence[tuple[str, str, str]]
) -> str:
    """Words a page of results.

    Args:
        instruction: Of the goal.
        number: Of the page, from 1.
        total: Of all results.
        rows: Asin, title and price of the products on this page.
    """
    ways = (NEXT,) if number == 1 else (PREVIOUS, NEXT)
    cells = (cell for row in rows for cell in row)
    heading = f"Page {number} (Total results: {total})"
    return SEP.join((*instruction_lead(instruction), BACK, heading, *ways, *cells))


def item_body(
    options: Sequence[tuple[str, Sequence[str]]], title: str, price: str
) -> tuple[str, ...]:
    """Returns the part of an item's page that the item decides."""
    choices = (cell for name, values in options for cell in (name, *values))
    return (*choices, title, f"Price: {price}")


def item_page(instruction: str, body: Sequence[str]) -> str:
    """Words an item's page around its `item_body`."""
    tail = ("Rating: N.A.", *SUB_PAGES, BUY)
    return SEP.join((*instruction_lead(instruction), BACK, PREVIOUS, *body, *tail))


def sub_page(instruction: str, content: Sequence[str]) -> str:
    """Words the description, the features or the (always empty) reviews of an item."""
    return SEP.join((*instruction_lead(instruction), BACK, PREVIOUS, *content))


def page_json(values: Mapping[str, str]) -> str:
    """Writes a dict as a page shows it: keys sorted, signs of HTML escaped."""
    text = json.dumps(dict(values), sort_keys=True)
    return "".join(_ESCAPES.get(sign, sign) for sign in text)


def done_page(asin: str, options_json: str, score: float | str) -> str:
    """Words the page after a purchase."""
    nothing = (
        cell
        for name in ("attrs", "category", "query", "product category")
        for cell in (name, "None")
    )
    return SEP.join(
        (
            THANKS,
            *("Your code:", "None", "(Paste it in your MTurk interface.)"),
            *("Purchased", "asin", asin, "options", options_json, *nothing),
            *("Target", "asin", "options", "attrs", "price upper"),
            # Misspelt by WebShop.
            *("instuction text", "category", "product category", "query"),
            *("Goal", "None", "Reward", "Your score (min 0.0, max 1.0)", str(score)),
            *("Reward Details", "None"),
        )
    )


def with_admissible(page: str, admissible: Sequence[str]) -> str:
    """Appends the admissible actions to a page as AgentGym's client does."""
    listed = "".join(f"'{action}',\n" for action in admissible)
    return f"{page}{_BLOCK}[\n{listed}]."


def without_admissible(observation: str) -> str:
    """Takes off what `with_admissible` appended."""
    return observation.partition(_BLOCK)[0]


@dataclass(frozen=True, slots=True)
class Page:
    """What a page says.

    Attributes:
        kind: Which page; ``"unknown"`` when the text is none of them.
        instruction: Of the goal; empty on the last page.
        number: Of the page of results, else 0.
        rows: Asin, title and price of each result.
        body: Of an item: names and values of its options in one list.
        title: Of an item.
        price: Of an item, as printed.
        content: Of a description, of features, of reviews.
    """

    kind: PageKind
    instruction: str = ""
    number: int = 0
    rows: tuple[tuple[str, str, str], ...] = ()
    body: tuple[str, ...] = ()
    title: str = ""
    price: str = ""
    content: tuple[str, ...] = ()


def read_page(observation: str) -> Page:
    """Reads a page, whoever wrote it; never raises."""
    cells = without_admissible(observation).split(SEP)
    if cells[0] == THANKS:
        return Page("done")
    if cells[0] == "WebShop" and cells[-1] == "Search" and len(cells) >= 4:
        return Page("index", SEP.join(cells[2:-1]))
    if cells[0] != "Instruction:" or BACK not in cells:
        return Page("unknown")
    back = cells.index(BACK)
    instruction, rest = SEP.join(cells[1:back]), cells[back + 1 :]
    if rest and (heading := _PAGE.fullmatch(rest[0])) and NEXT in rest:
        found = rest[rest.index(NEXT) + 1 :]
        rows = tuple(zip(found[::3], found[1::3], found[2::3], strict=False))
        return Page("results", instruction, number=int(heading[1]), rows=rows)
    prices = [i for i, cell in enumerate(rest) if cell.startswith("Price: ")]
    if prices and prices[-1] > 1 and rest[-1] == BUY:
        price = prices[-1]
        return Page(
            "item",
            instruction,
            body=tuple(rest[1 : price - 1]),
            title=rest[price - 1],
            price=rest[price].removeprefix("Price: "),
        )
    if rest and rest[0] == PREVIOUS:
        return Page("sub", instruction, content=tuple(rest[1:]))
    return Page("unknown", instruction)


def read_action(action: str) -> tuple[str, str] | None:
    """Returns verb and argument, the argument in lower case; None when there is no such form."""
    # What the pattern (.+)\[(.+)\] matches at the beginning, in linear time.
    line = action.partition("\n")[0]
    end = line.rfind("]")
    start = line.rfind("[", 1, max(1, end - 1))
    return (line[:start], line[start + 1 : end].lower()) if start > 0 else None


def lowest_price(printed: str) -> float | None:
    """Reads ``"$4.02 to $6.03"``; None when there is no number."""
    match = _NUMBER.search(printed)
    return float(match[0]) if match else None


@dataclass(frozen=True, slots=True)
class Wish:
    """What an instruction asks for, as far as its wording tells.

    Attributes:
        words: What kind of thing, with what attributes.
        options: Option names and the values wanted.
        price: Upper limit; None when there is none.
    """

    words: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    price: float | None

    @property
    def query(self) -> str:
        """What to search for: the words and the values of the options."""
        return " ".join((*self.words, *(value for _, value in self.options)))


def read_instruction(instruction: str) -> Wish:
    """Reads an instruction; never raises. A person's own wording gives words only."""
    limit = _PRICE_LIMIT.search(instruction)
    text = instruction[: limit.start()] if limit else instruction
    first = _OPTIONS.search(text)
    options = tuple(_OPTIONS.findall(text))
    lead = text[: first.start()] if first else text
    words = re.findall(r"[\w'-]+", lead.lower())
    kept = tuple(dict.fromkeys(word for word in words if word not in _FILLERS))
    return Wish(kept, options, float(limit[1]) if limit else None)
