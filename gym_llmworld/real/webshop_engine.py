"""WebShop's pages, actions and sessions, without a browser.

Written from a description of WebShop's ``text`` mode (Yao et al., arXiv 2207.01206), not from its
code. `Visit` is one customer's session in one shop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from gym_llmworld.real.webshop_catalogue import Catalogue, Goal, Product
from gym_llmworld.real.webshop_reward import score
from gym_llmworld.worlds.webshop_text import (
    BACK,
    BUY,
    NEXT,
    PER_PAGE,
    PREVIOUS,
    SEARCH_TEMPLATE,
    SUB_PAGES,
    done_page,
    index_page,
    item_page,
    page_json,
    read_action,
    results_page,
    sub_page,
)

Where = Literal["index", "results", "item", "description", "features", "reviews", "done"]


@dataclass(frozen=True, slots=True)
class View:
    """What a customer sees.

    Attributes:
        text: The page, as in WebShop's ``text`` mode.
        search_bar: The page lists the search as an action. (It works everywhere.)
        clickables: What can be clicked, in lower case, in WebShop's order.
        done: Something was bought.
        score: Of the purchase, in [0, 1]; 0 before.
    """

    text: str
    search_bar: bool
    clickables: tuple[str, ...]
    done: bool = False
    score: float = 0.0

    @property
    def admissible(self) -> tuple[str, ...]:
        """The actions as AgentGym's client lists them."""
        searches = (SEARCH_TEMPLATE,) if self.search_bar else ()
        return (*searches, *(f"click[{clickable}]" for clickable in self.clickables))


INDEX_ADMISSIBLE = (SEARCH_TEMPLATE, "click[search]")


class Shop(Protocol):
    """A session in a shop, wherever the shop is."""

    @property
    def view(self) -> View:
        """What the customer sees now."""
        ...

    def act(self, action: str) -> View:
        """Carries out an action; one that means nothing leaves the page as it is.

        Raises:
            EngineError: The shop does not answer.
        """
        ...

    def close(self) -> None:
        """Ends the session."""
        ...


class Visit:
    """A customer's session in a shop of this package.

    Copies are cheap and share the shop.

    Args:
        catalogue: The shop.
        goal: What the customer wants.
    """

    def __init__(self, catalogue: Catalogue, goal: Goal) -> None:
        self._catalogue, self._goal = catalogue, goal
        self._where: Where = "index"
        self._found: tuple[Product, ...] = ()
        self._number = 1
        self._product: Product | None = None
        self._chosen: dict[str, str] = {}
        self.view = self._look()

    def act(self, action: str) -> View:
        """Carries out an action; see `Shop`."""
        read = None if self._where == "done" else read_action(action)
        if read is not None:
            verb, argument = read
            if verb == "search":
                self._search(argument)
            elif verb == "click" and argument in self.view.clickables and argument != "search":
                self._click(argument)
        return self.view

    def close(self) -> None:
        """Does nothing: there is nothing to free."""

    def _search(self, words: str) -> None:
        self._found, self._number = self._catalogue.search(tuple(words.split())), 1
        self._show("results")

    def _click(self, label: str) -> None:
        if label == BACK.lower():
            self._show("index")
        elif label == NEXT.lower():
            self._number += 1
            self._show("results")
        elif label == PREVIOUS.lower():
            self._back()
        elif label == BUY.lower():
            self._show("done")
        elif self._where == "results":
            self._product = self._shown()[label]
            self._chosen = {}
            self._show("item")
        elif label in _SUB_PAGE_OF:
            self._show(_SUB_PAGE_OF[label])
        else:
            # The page does not show what was chosen.
            assert self._product is not None
            self._chosen[self._product.choices[label]] = label

    def _back(self) -> None:
        if self._where == "results":
            self._number -= 1
        self._show("item" if self._where in _SUB_PAGE_OF else "results")

    def _shown(self) -> dict[str, Product]:
        """The products on the present page of results, by what is clicked."""
        first = PER_PAGE * (self._number - 1)
        return {p.asin.lower(): p for p in self._found[first : first + PER_PAGE]}

    def _show(self, where: Where) -> None:
        self._where = where
        self.view = self._look()

    def _look(self) -> View:
        wish = self._goal.instruction
        if self._where == "index":
            return View(index_page(wish), True, ("search",))
        if self._where == "results":
            shown = self._shown()
            rows = [product.row for product in shown.values()]
            text = results_page(wish, self._number, len(self._found), rows)
            ways = (NEXT,) if self._number == 1 else (PREVIOUS, NEXT)
            return View(text, False, (BACK.lower(), *(w.lower() for w in ways), *shown))
        product = self._product
        assert product is not None
        if self._where == "item":
            buttons = (BACK, PREVIOUS, *SUB_PAGES, BUY)
            clickables = dict.fromkeys((*(b.lower() for b in buttons), *product.choices))
            return View(item_page(wish, product.body), False, tuple(clickables))
        if self._where == "done":
            return self._receipt(product)
        contents = {"description": (product.description,), "features": product.bullets}
        content = [text for text in contents.get(self._where, ()) if text]
        return View(sub_page(wish, content), False, (BACK.lower(), PREVIOUS.lower()))

    def _receipt(self, product: Product) -> View:
        target = self._catalogue.by_asin[self._goal.asin]
        earned = score(product, self._chosen.values(), self._goal, target)
        text = done_page(product.asin, page_json(self._chosen), earned)
        return View(text, False, (), done=True, score=earned)


_SUB_PAGE_OF: dict[str, Where] = {
    "description": "description",
    "features": "features",
    "reviews": "reviews",
}
