"""WebShop's prompt styles, scenarios and customers, against what the engine shows."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

pytest.importorskip("bm25s", reason="needs the webshop extra")

from gym_llmworld.agents import Agent, overrule
from gym_llmworld.collection import play
from gym_llmworld.core import Episode, Scenario
from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.webshop_catalogue import Catalogue
from gym_llmworld.real.webshop_engine import Visit
from gym_llmworld.real.webshop_env import WebShopEnv
from gym_llmworld.real.webshop_generator import generated_catalogue
from gym_llmworld.real.webshop_goals import (
    TEST_SHOPS,
    TRAIN_SHOPS,
    GoalSpec,
    all_specs,
    goal_scenario,
    spec_of,
)
from gym_llmworld.real.webshop_scenarios import load_games, write_games
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.testing import check_text_env
from gym_llmworld.worlds.webshop import WORLD, engine_context
from gym_llmworld.worlds.webshop_agents import BUY_NOW, WebShopCustomer
from gym_llmworld.worlds.webshop_text import read_instruction, read_page
from gym_llmworld.worlds.webshop_wording import ShopWording
from tests.scripted_world import MODEL
from tests.webshop_shared import small_shop


@lru_cache(maxsize=1)
def shipped(split: str = "valid") -> tuple[Scenario, ...]:
    return ScenarioStore("webshop").of_split(split)


def shop_of(scenario: Scenario) -> Catalogue:
    return generated_catalogue(int(spec_of(scenario).shop))


def episodes(name: str, count: int = 40) -> list[Episode]:
    env, agent = WebShopEnv(), WORLD.agents[name]()
    return [play(env, agent, s, seed=i, max_steps=20) for i, s in enumerate(shipped()[:count])]


def test_what_ships_is_what_the_generator_makes() -> None:
    store = ScenarioStore("webshop")
    counts = {split: len(store.of_split(split)) for split in store.splits()}
    assert counts == {"train": 40, "valid": 60, "test": 60}
    for split in store.splits():
        for scenario in store.of_split(split)[:15]:
            assert goal_scenario(spec_of(scenario), shop_of(scenario)) == scenario


def test_splits_share_no_goal_and_test_no_shop() -> None:
    specs = {split: {(s.shop, s.index) for s in all_specs(split)} for split in WORLD.splits}
    assert not specs["train"] & specs["valid"]
    assert {shop for shop, _ in specs["train"]} == {shop for shop, _ in specs["valid"]}
    assert {shop for shop, _ in specs["test"]}.isdisjoint(shop for shop, _ in specs["train"])
    assert not {*TRAIN_SHOPS} & {*TEST_SHOPS}
    assert (len(specs["valid"]), min(map(len, specs.values()))) == (6000, 6000)


@pytest.mark.parametrize("number", range(3))
def test_the_context_words_what_the_engine_shows(number: int) -> None:
    scenario = shipped()[number]
    shop, goal = shop_of(scenario), spec_of(scenario).index
    visit, search = Visit(shop, shop.goals[goal]), scenario.real["plan"][0]
    lines = engine_context(scenario).split("\n")
    assert lines[-1] == scenario.instruction
    wording = ShopWording(scenario)
    assert lines[0] == f"{search} home {wording.write(search, visit.act(search).text)}"
    for number_of_row, product in enumerate(scenario.hidden["products"]):
        item, description, features, bought = lines[1 + 4 * number_of_row :][:4]
        wording, visit = ShopWording(scenario), Visit(shop, shop.goals[goal])
        wanted = {f"click[{product['asin']}]": item, "click[description]": description}
        wording.write(search, visit.act(search).text)
        for action, line in wanted.items():
            assert wording.write(action, visit.act(action).text) == line
        wording.write("click[< prev]", visit.act("click[< prev]").text)
        assert wording.write("click[features]", visit.act("click[features]").text) == features
        wording.write("click[< prev]", visit.act("click[< prev]").text)
        receipt = wording.write(BUY_NOW, visit.act(BUY_NOW).text)
        assert bought.startswith(receipt)  # without options: " row 3 none 0.5"


def test_styles_without_the_catalogue() -> None:
    scenario = shipped()[0]
    page = f"WebShop [SEP] Instruction: [SEP] {scenario.instruction} [SEP] Search"
    assert WORLD.contexts["nocatalog"](scenario) == scenario.instruction
    assert WORLD.contexts["word2world"](scenario) == (
        f"{page}\n\nYour admissible actions of the current situation are: \n[\n"
        "'search[<your query>]',\n'click[search]',\n]."
    )
    bare = Scenario("x", "webshop", "test", scenario.instruction, page)
    assert engine_context(bare) == scenario.instruction


def test_only_a_perfect_purchase_is_marked() -> None:
    protocol = WORLD.protocol("engine")
    for episode in (*episodes("hasty", 12), *episodes("expert", 4)):
        last, page = protocol.conversation(episode)[-1].content, episode.steps[-1].observation
        assert last.endswith(" [SUCCESS]") == (" [SEP] 1.0 [SEP] Reward Details" in page)


def test_the_imagined_world_keeps_the_contract() -> None:
    for style in WORLD.contexts:
        check_text_env(gym.make("LLMWorld-WebShop-v0", model=MODEL, prompt_style=style))


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        *(("plan", 1.0, 1.0), ("expert", 0.97, 1.0), ("hasty", 0.3, 0.8), ("noisy", 0.5, 0.97)),
        *(("noisy50", 0.1, 0.7), ("random", 0.0, 0.1), ("corrupted", 0.4, 0.95)),
    ],
)
def test_how_well_customers_shop(name: str, lowest: float, highest: float) -> None:
    played = episodes(name)
    assert lowest <= sum(episode.success for episode in played) / len(played) <= highest
    assert [episode.actions for episode in episodes(name, 5)] == [e.actions for e in played[:5]]


def test_customers_read_published_observations_too() -> None:
    raw, agent = WebShopEnv(raw=True), WORLD.agents["expert"]()
    for number, scenario in enumerate(shipped()[:5]):
        plain = play(WebShopEnv(), agent, scenario, seed=number, max_steps=20)
        assert play(raw, agent, scenario, seed=number, max_steps=20).actions == plain.actions


@pytest.mark.parametrize("name", list(WORLD.agents))
def test_customers_bear_with_nonsense(name: str) -> None:
    draw = random.Random(1)
    agent, scenario = WORLD.agents[name](), shipped()[0]
    pages = [scenario.observation, "", "Instruction:", " [SEP] ".join(["Back to Search"] * 3)]
    visit = Visit(shop_of(scenario), shop_of(scenario).goals[spec_of(scenario).index])
    pages += [visit.act(action).text for action in scenario.real["plan"]]
    for seed in range(5):
        agent.reset(scenario, seed)
        for _ in range(40):
            page = draw.choice(pages)
            cut = page[draw.randrange(20) : len(page) - draw.randrange(1, 40)]
            assert isinstance(agent.act(draw.choice((page, cut)), {}), str)


@pytest.mark.parametrize(
    ("instruction", "words", "options", "price"),
    [
        (
            "i need a quick dry polo shirt with color: navy, and size: large, and price lower than "
            "40.00 dollars",
            "quick dry polo shirt",
            (("color", "navy"), ("size", "large")),
            40.0,
        ),
        ("find me a sofa, and price lower than 90.00 dollars", "sofa", (), 90.0),
        ("I'd like soy-free tea", "i'd soy-free tea", (), None),
        ("", "", (), None),
    ],
)
def test_instructions_are_read(
    instruction: str, words: str, options: tuple[tuple[str, str], ...], price: float | None
) -> None:
    wish = read_instruction(instruction)
    assert (" ".join(wish.words), wish.options, wish.price) == (words, options, price)


def test_every_goal_is_read_back() -> None:
    shop = generated_catalogue(0)
    for goal in shop.goals[::50]:
        wish = read_instruction(goal.instruction)
        assert wish.options == tuple(zip(goal.names, goal.options, strict=True))
        assert wish.price == goal.price_upper
        assert {*" ".join(goal.attributes).split()} <= {*wish.words, "for"}


def test_pages_are_read() -> None:
    shop = small_shop()
    visit = Visit(shop, shop.goals[0])
    wish = shop.goals[0].instruction
    assert read_page(visit.view.text).instruction == wish
    results = read_page(visit.act("search[sofa]").text)
    assert (results.kind, results.number) == ("results", 1)
    assert results.rows == (("B000000005", "Corvin Sofa", "$19.99"),)
    item = read_page(visit.act("click[b000000005]").text)
    assert (item.kind, item.title, item.price) == ("item", "Corvin Sofa", "$19.99")
    assert item.body == ("color", "black", "brass", "size", "small | medium", "large")
    sub = read_page(visit.act("click[features]").text)
    assert (sub.kind, sub.content) == ("sub", ("Energy efficient.", "Made of brass."))
    assert read_page("anything").kind == "unknown"


class Cashier:
    """Refuses purchases: shows the same page again."""

    def __init__(self, scenario: Scenario) -> None:
        self.visit = Visit(shop_of(scenario), shop_of(scenario).goals[spec_of(scenario).index])
        self.refused = 0

    def act(self, action: str) -> str:
        if action == BUY_NOW:
            self.refused += 1
            return self.visit.view.text
        return self.visit.act(action).text


@pytest.mark.parametrize("care", [1.0, 0.5])
def test_a_refused_purchase_is_thought_over(care: float) -> None:
    scenario = shipped()[1]
    agent, cashier = WebShopCustomer(care=care), Cashier(scenario)
    agent.reset(scenario, 3)
    observation, bought = scenario.observation, set[str]()
    for _ in range(60):
        action = agent.act(observation, {})
        if action == BUY_NOW:
            bought.add(read_page(observation).title)
        observation = cashier.act(action)
    assert cashier.refused >= 2
    assert len(bought) >= 2


def test_a_customer_puts_a_stray_choice_right() -> None:
    scenario = next(s for s in shipped() if len(s.real["plan"]) >= 4)
    visit = Visit(shop_of(scenario), shop_of(scenario).goals[spec_of(scenario).index])
    agent: Agent = WebShopCustomer(curiosity=0.0)
    agent.reset(scenario, 0)
    observation, strayed = scenario.observation, False
    for _ in range(30):
        action = agent.act(observation, {})
        if action == BUY_NOW and not strayed:
            strayed = True
            values = [v for v in visit.view.clickables[6:] if v not in scenario.instruction]
            overrule(agent, f"click[{values[0]}]")
            action = f"click[{values[0]}]"
        view = visit.act(action)
        observation = view.text
        if view.done:
            break
    assert strayed
    assert view.score == 1.0


def test_write_games_goes_on_where_it_was(tmp_path: Path) -> None:
    seen: list[Any] = []
    file = write_games(tmp_path, "valid", 6, seed=5, progress=lambda *done: seen.append(done))
    assert seen == [(i + 1, 6) for i in range(6)]
    first = load_games(tmp_path, "valid")
    write_games(tmp_path, "valid", 9, seed=5)
    more = load_games(tmp_path, "valid")
    assert more[:6] == first
    assert len({s.id for s in more}) == 9
    content = file.read_bytes()
    write_games(tmp_path / "other", "valid", 9, seed=5)
    assert (tmp_path / "other" / "valid" / "scenarios.jsonl").read_bytes() == content
    assert all(s.real["plan"][-1] == BUY_NOW for s in more)
    env = WebShopEnv(split="valid", games=str(tmp_path))
    assert env.reset(seed=0)[1]["llmworld"]["scenario"] in {s.id for s in more}


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"split 'valid' has 6000 goals.*n <= 5400, got 5401"):
        write_games(tmp_path, "valid", 5401)
    with pytest.raises(ScenarioError, match="unknown split"):
        write_games(tmp_path, "dev", 1)
    with pytest.raises(ScenarioError, match="no folder"):
        load_games(tmp_path / "nowhere", "valid")


def test_ids_and_goals() -> None:
    spec = GoalSpec("valid", "0", 7)
    assert GoalSpec.parse(spec.id) == spec
    for text in ("valid/0", "dev/0/7", "valid/0/x", ""):
        assert GoalSpec.parse(text) is None
