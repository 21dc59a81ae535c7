"""Goals of shops, and the scenarios that start at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.webshop_catalogue import Catalogue, Goal, Product
from gym_llmworld.real.webshop_engine import INDEX_ADMISSIBLE, Visit
from gym_llmworld.real.webshop_generator import generated_catalogue
from gym_llmworld.real.webshop_reward import scores_by_options
from gym_llmworld.real.webshop_words import CATALOGUE_VERSION
from gym_llmworld.scenarios import check_generator
from gym_llmworld.worlds.webshop_text import PER_PAGE, index_page, read_instruction

WORLD_KEY = "webshop"
SPLITS = ("train", "valid", "test")

TRAIN_SHOPS = (0, 1, 2, 3)
TEST_SHOPS = (1000,)
"""Shops whose products no training episode has seen."""

# As everybody splits WebShop's goals: the first 500 for test, 1,000 for validation, the rest.
HELD_OUT = 1500
TEST_GOALS = 500


@dataclass(frozen=True, slots=True)
class GoalSpec:
    """Names a goal.

    Attributes:
        split: ``train``, ``valid`` or ``test``.
        shop: Seed of a generated shop, ``"checkout"`` or ``"http"``.
        index: Of the goal in its shop.
        place: Folder of the checkout, address of the server; empty for a generated shop, and where
            it is not known.
    """

    split: str
    shop: str
    index: int
    place: str = ""

    @property
    def id(self) -> str:
        """Of the scenario: ``valid/0/17``."""
        return f"{self.split}/{self.shop}/{self.index}"

    @classmethod
    def parse(cls, text: str) -> GoalSpec | None:
        """Reads an id; None when it is none."""
        parts = text.split("/")
        if len(parts) != 3 or parts[0] not in SPLITS or not parts[2].isdecimal():
            return None
        return cls(parts[0], parts[1], int(parts[2]))


def check_split(split: str) -> str:
    """Returns the split.

    Raises:
        ScenarioError: There is no such split.
    """
    if split not in SPLITS:
        raise ScenarioError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    return split


def shared_goals(split: str, count: int) -> range:
    """Returns which of a shop's ``count`` goals a split has, where one shop serves all splits."""
    bounds = {
        "test": (0, TEST_GOALS),
        "valid": (TEST_GOALS, HELD_OUT),
        "train": (HELD_OUT, count),
    }
    first, last = bounds[check_split(split)]
    return range(min(first, count), min(last, count))


def generated_goals(split: str, shop: int) -> range:
    """Returns which goals of a generated shop a split has.

    Training and validation share shops and have different goals; test has a shop of its own, with
    other products.
    """
    if shop not in shops_of(split):
        return range(0)
    count = len(generated_catalogue(shop).goals)
    return {"train": range(HELD_OUT, count), "valid": range(HELD_OUT)}.get(split, range(count))


def shops_of(split: str) -> tuple[int, ...]:
    """Returns the generated shops of a split."""
    return TEST_SHOPS if check_split(split) == "test" else TRAIN_SHOPS


def all_specs(split: str) -> list[GoalSpec]:
    """Returns the goals of a split in the generated shops."""
    return [GoalSpec(split, str(s), i) for s in shops_of(split) for i in generated_goals(split, s)]


def hidden_facts(catalogue: Catalogue, goal: Goal) -> dict[str, Any]:
    """Returns what a world model has to know to foresee a goal's episodes.

    The first page of results of the goal's own search, the products on it as their pages show them,
    and what buying each would earn with 0, 1, ... of the wanted options chosen.
    """
    query = read_instruction(goal.instruction).query
    found = catalogue.search(tuple(query.split()))
    target = catalogue.by_asin[goal.asin]
    return {
        "query": query,
        "total": len(found),
        "products": [
            {
                "asin": product.asin,
                "title": product.title,
                "price": product.price_text,
                "options": [[name, list(values)] for name, values in product.options],
                "description": product.description,
                "bullets": list(product.bullets),
                "scores": list(scores_by_options(product, goal, target)),
            }
            for product in found[:PER_PAGE]
        ],
    }


def goal_plan(catalogue: Catalogue, goal: Goal) -> list[str] | None:
    """Returns actions that buy what is wanted; None where the goal's own search does not find it.

    They are carried out before they are returned.
    """
    query = read_instruction(goal.instruction).query
    found = catalogue.search(tuple(query.split()))
    if goal.asin not in [product.asin for product in found[:PER_PAGE]]:
        return None
    chosen = _wanted_values(catalogue.by_asin[goal.asin], goal)
    clicks = [goal.asin.lower(), *chosen, "buy now"]
    plan = [f"search[{query}]", *(f"click[{label}]" for label in clicks)]
    visit = Visit(catalogue, goal)
    for action in plan:
        visit.act(action)
    return plan if visit.view.score == 1 else None


def _wanted_values(product: Product, goal: Goal) -> list[str]:
    return [value for value in goal.options if value in product.choices]


def goal_scenario(spec: GoalSpec, catalogue: Catalogue) -> Scenario:
    """Describes where a customer's visit starts.

    Raises:
        ScenarioError: The shop has no such goal.
    """
    if spec.index >= len(catalogue.goals):
        raise ScenarioError(
            f"there is no goal {spec.index} in shop {catalogue.name}; expected 0 to "
            f"{len(catalogue.goals) - 1}"
        )
    goal = catalogue.goals[spec.index]
    plan = goal_plan(catalogue, goal)
    return Scenario(
        id=spec.id,
        world=WORLD_KEY,
        split=spec.split,
        instruction=goal.instruction,
        observation=index_page(goal.instruction),
        admissible=INDEX_ADMISSIBLE,
        hidden=hidden_facts(catalogue, goal),
        real={**real_facts(spec), "plan": plan} if plan else real_facts(spec),
    )


def real_facts(spec: GoalSpec) -> dict[str, Any]:
    """Returns what the twin needs to start at a goal; `spec_of` reads it."""
    facts: dict[str, Any] = {"shop": spec.shop, "goal": spec.index}
    if spec.shop.isdecimal():
        return {**facts, "generator": CATALOGUE_VERSION}
    return {**facts, "place": spec.place}


def spec_of(scenario: Scenario) -> GoalSpec:
    """Returns which goal a scenario starts.

    Raises:
        ScenarioError: It does not say, or another generator version made it.
    """
    real = scenario.real
    if "shop" not in real or not isinstance(real.get("goal"), int):
        raise ScenarioError(
            f"scenario {scenario.id!r} does not say which goal it starts; expected in real 'shop' "
            f"and 'goal' (a number), got {sorted(real)}"
        )
    check_generator(scenario, CATALOGUE_VERSION, "shop")
    return GoalSpec(scenario.split, str(real["shop"]), real["goal"], str(real.get("place", "")))
