"""The bundled WebShop engine against the published pages, actions and reward."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("bm25s", reason="needs the webshop extra")

from gym_llmworld.errors import DataError, MissingDependency, ScenarioError
from gym_llmworld.real import webshop_reward, webshop_search
from gym_llmworld.real.webshop_catalogue import Goal
from gym_llmworld.real.webshop_engine import View, Visit
from gym_llmworld.real.webshop_files import read_checkout, read_products
from gym_llmworld.real.webshop_generator import generate_records, generated_catalogue
from gym_llmworld.real.webshop_search import SearchIndex
from gym_llmworld.worlds.webshop_text import (
    page_json,
    read_action,
    read_page,
    with_admissible,
)
from tests.webshop_shared import ATTRIBUTES, RECORDS, product, small_shop

SHOP = small_shop()
GOAL = next(g for g in SHOP.goals if g.options == ("brass", "large"))
LEAD = f"Instruction: [SEP] {GOAL.instruction} [SEP] Back to Search [SEP] "
ITEM = (
    "< Prev [SEP] color [SEP] black [SEP] brass [SEP] size [SEP] small | medium [SEP] large [SEP] "
    "Kestrin Desk Lamp [SEP] Price: $19.99 [SEP] Rating: N.A. [SEP] Description [SEP] Features "
    "[SEP] Reviews [SEP] Buy Now"
)


def walk(*actions: str, goal: Goal = GOAL) -> View:
    visit = Visit(SHOP, goal)
    for action in actions:
        visit.act(action)
    return visit.view


OPEN = ("search[Kestrin desk lamp]", "click[b000000001]")


def test_the_first_page() -> None:
    assert re.fullmatch(
        r"i am looking for an energy efficient desk lamp with color: brass, and size: large, and "
        r"price lower than [3-6]0\.00 dollars",
        GOAL.instruction,
    )
    view = walk()
    assert view.text == f"WebShop [SEP] Instruction: [SEP] {GOAL.instruction} [SEP] Search"
    assert view.admissible == ("search[<your query>]", "click[search]")


def test_the_published_list_of_actions() -> None:
    view = walk()
    assert with_admissible(view.text, view.admissible) == (
        f"{view.text}\n\nYour admissible actions of the current situation are: \n[\n"
        "'search[<your query>]',\n'click[search]',\n]."
    )


def test_results_and_turning_their_pages() -> None:
    view = walk("search[KESTRIN desk lamp]")
    assert view.text.startswith(
        f"{LEAD}Page 1 (Total results: 4) [SEP] Next > [SEP] B000000001 [SEP] Kestrin Desk Lamp "
        "[SEP] $19.99 [SEP] B000000003 [SEP] Alvora Desk Lamp [SEP] $100.0 [SEP] "
    )
    assert "[SEP] $1299.0" in view.text
    assert "[SEP] $4.02 to $6.03" in view.text
    assert view.clickables[:3] == ("back to search", "next >", "b000000001")
    beyond = walk("search[lamp]", "click[next >]")
    assert beyond.text == f"{LEAD}Page 2 (Total results: 4) [SEP] < Prev [SEP] Next >"
    assert beyond.clickables == ("back to search", "< prev", "next >")
    assert walk("search[lamp]", "click[next >]", "click[< prev]") == walk("search[lamp]")
    nothing = walk("search[the of]")
    assert nothing.text == f"{LEAD}Page 1 (Total results: 0) [SEP] Next >"


def test_an_item_and_its_further_pages() -> None:
    view = walk(*OPEN)
    assert view.text == LEAD + ITEM
    assert view.clickables == (
        *("back to search", "< prev", "description", "features", "reviews", "buy now"),
        *("black", "brass", "small | medium", "large"),
    )
    description = walk(*OPEN, "click[Description]")
    assert description.text == f"{LEAD}< Prev [SEP] The Kestrin Desk Lamp lights up a room."
    assert description.clickables == ("back to search", "< prev")
    features = walk(*OPEN, "click[features]")
    assert features.text == f"{LEAD}< Prev [SEP] Energy efficient. [SEP] Made of brass."
    assert walk(*OPEN, "click[reviews]").text == f"{LEAD}< Prev"


def test_choosing_does_not_show_but_counts() -> None:
    assert walk(*OPEN, "click[brass]") == walk(*OPEN)
    chosen = ("click[large]", "click[black]", "click[brass]")
    view = walk(*OPEN, *chosen, "click[features]", "click[< prev]", "click[buy now]")
    assert view.text == (
        "Thank you for shopping with us! [SEP] Your code: [SEP] None [SEP] (Paste it in your MTurk "
        "interface.) [SEP] Purchased [SEP] asin [SEP] B000000001 [SEP] options [SEP] "
        '{"color": "brass", "size": "large"} [SEP] attrs [SEP] None [SEP] category [SEP] None '
        "[SEP] query [SEP] None [SEP] product category [SEP] None [SEP] Target [SEP] asin [SEP] "
        "options [SEP] attrs [SEP] price upper [SEP] instuction text [SEP] category [SEP] product "
        "category [SEP] query [SEP] Goal [SEP] None [SEP] Reward [SEP] Your score (min 0.0, max "
        "1.0) [SEP] 1.0 [SEP] Reward Details [SEP] None"
    )
    assert (view.done, view.score, view.clickables) == (True, 1.0, ())


@pytest.mark.parametrize(
    "detour",
    [
        ["click[< prev]", "click[b000000001]"],
        ["click[back to search]", *OPEN],
        [*OPEN],
        ["click[description]", "click[back to search]", *OPEN],
    ],
)
def test_leaving_an_item_clears_what_was_chosen(detour: list[str]) -> None:
    bought = walk(*OPEN, "click[brass]", *detour, "click[buy now]")
    assert "options [SEP] {} [SEP]" in bought.text
    assert bought.score == pytest.approx(3 / 5)


def test_searching_works_on_every_page() -> None:
    for before in ([], ["search[sofa]"], [*OPEN], [*OPEN, "click[features]"]):
        assert walk(*before, "search[lamp]") == walk("search[lamp]")


@pytest.mark.parametrize(
    "action",
    [
        *("", "click", "click[", "click[]", "[click]", "click[buy now", "search[]", "look"),
        *("click[search]", "click[green]", "click[next >]", "Click[buy now]", "buy[now]"),
        *("click[b000000001]", "click[[brass]]", "say [SUCCESS]", "click\n[brass]", "\ud800"),
    ],
)
def test_what_means_nothing_changes_nothing(action: str) -> None:
    visit = Visit(SHOP, GOAL)
    for step in OPEN:
        visit.act(step)
    before = visit.view
    assert visit.act(action) == before
    assert visit.act("click[buy now]").done


def test_after_the_purchase_nothing_happens() -> None:
    assert walk(*OPEN, "click[buy now]", "search[lamp]") == walk(*OPEN, "click[buy now]")


def test_actions_are_read_as_by_the_pattern() -> None:
    draw = random.Random(0)
    texts = ["".join(draw.choices("ab[] \n", k=draw.randint(0, 9))) for _ in range(20_000)]
    for text in texts:
        match = re.match(r"(.+)\[(.+)\]", text)
        assert read_action(text) == ((match[1], match[2].lower()) if match else None), text
    assert read_action("]" + "[" * 200_000) is None


def test_texts_with_brackets_quotes_and_separators_are_served_as_they_are() -> None:
    view = walk("search[odd]", "click[b000000002]")
    assert 'Odd "Lamp" [SEP] [Price: $1] it\'s <b> [SEP] Price: $4.02 to $6.03' in view.text
    assert view.clickables[-1] == "5' <wide> & [tall]"
    # As in WebShop, a label that ends with a bracket can be seen, not clicked.
    stuck = walk("search[odd]", "click[b000000002]", "click[5' <wide> & [tall]]")
    assert stuck == view
    assert read_page(view.text).kind == "item"
    receipt = walk("search[odd]", "click[b000000002]", "click[buy now]")
    assert read_page(receipt.text).kind == "done"
    assert walk("search[odd]", "click[b000000002]", "click[description]").text == f"{LEAD}< Prev"
    assert page_json({"b": "5' <é> & \"", "a": "x"}) == (
        '{"a": "x", "b": "5\\u0027 \\u003c\\u00e9\\u003e \\u0026 \\""}'
    )


@pytest.mark.parametrize(
    ("asin", "chosen", "expected"),
    [
        ("B000000001", ["brass", "large"], 1.0),
        ("B000000001", ["antique brass", "LARGE"], 1.0),
        ("B000000001", ["black", "large"], 4 / 5),
        # Same query; "easy clean" is neither its attribute nor in its text; 100 dollars.
        ("B000000003", [], 1 / 5),
        # One common word of three ("lamp"), other query and category: still more than a fifth.
        ("B000000004", ["brass"], 2 / 5),
        # No common word.
        ("B000000005", ["brass", "large"], 0.0),
    ],
)
def test_rewards_by_hand(asin: str, chosen: list[str], expected: float) -> None:
    bought, target = SHOP.by_asin[asin], SHOP.by_asin[GOAL.asin]
    assert webshop_reward.score(bought, chosen, GOAL, target) == pytest.approx(expected)


def test_how_much_a_product_is_of_the_wanted_kind() -> None:
    def factor(title: str, query: str = "x", path: tuple[str, ...] = ()) -> float:
        other = dataclasses.replace(SHOP.products[0], title=title, query=query, path=path)
        return webshop_reward.type_factor(other, wanted)

    words = "ash birch cedar doum elm fir gum hazel iroko jarrah kauri"
    wanted = dataclasses.replace(
        SHOP.products[0], title=words, query="trees", path=("wood", "tree", "seed")
    )
    assert factor("ash birch cedar") == 1.0  # 3 of 11
    assert factor("ash birch") == 0.5  # 2 of 11, nothing else
    assert factor("ash birch", query="trees") == 1.0
    assert factor("ash birch", path=("wood", "seed")) == 1.0
    assert factor("ash", query="trees") == 0.1  # 1 of 11
    assert factor("stone", query="trees") == 0.0


def test_scores_by_options_are_the_scores() -> None:
    target = SHOP.by_asin[GOAL.asin]
    for bought in SHOP.products:
        table = webshop_reward.scores_by_options(bought, GOAL, target)
        for chosen in ([], ["brass"], ["brass", "large"]):
            matched = webshop_reward.options_matched(chosen, GOAL)
            assert webshop_reward.score(bought, chosen, GOAL, target) == table[matched]


def lucene_scores(documents: list[list[str]], query: list[str]) -> list[float]:
    """BM25 as Lucene defines it, written out."""
    mean = sum(map(len, documents)) / len(documents)
    found = Counter(word for document in documents for word in set(document))
    scores = []
    for document in documents:
        total = 0.0
        for word in query:
            tf = document.count(word)
            idf = math.log(1 + (len(documents) - found[word] + 0.5) / (found[word] + 0.5))
            total += idf * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * len(document) / mean))
        scores.append(total)
    return scores


def test_search_ranks_by_bm25() -> None:
    draw = random.Random(3)
    words = ["ant", "bat", "cat", "dog", "elk", "fox"]
    documents = [draw.choices(words, k=draw.randint(1, 9)) for _ in range(60)]
    index = SearchIndex([" ".join(document) for document in documents])
    for query in (["ant"], ["bat", "cat"], ["dog", "elk", "fox", "unknown"]):
        scores = lucene_scores(documents, query)
        found = index.top(" ".join(query))
        assert len(found) == min(50, sum(score > 0 for score in scores))
        ranked = [scores[i] for i in found]
        assert ranked == pytest.approx(sorted(scores, reverse=True)[: len(ranked)], rel=1e-5)


def test_search_stems_and_ignores_stop_words() -> None:
    index = SearchIndex(["the dancing lamps", "a sofa", "lamp's shade"])
    assert index.top("lamp") == index.top("the Lamps are!") == [2, 0] or index.top("lamp") == [0, 2]
    assert index.top("dance") == [0]
    assert index.top("") == index.top("the") == index.top("zebra") == []
    assert SearchIndex([]).top("lamp") == []


@pytest.mark.parametrize("missing", ["bm25s", "PyStemmer", "rapidfuzz"])
def test_what_is_not_installed_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(webshop_search._EXTRA, "no_such_module", missing)
    with pytest.raises(MissingDependency, match=rf"'{missing}' .*gym-llmworld\[webshop\]"):
        SearchIndex(["lamp"])


def test_a_seed_always_gives_the_same_shop() -> None:
    code = (
        "import hashlib, json; from gym_llmworld.real.webshop_generator import *\n"
        "shop = generated_catalogue(3, 200)\n"
        "facts = [[str(p) for p in shop.products], [str(g) for g in shop.goals]]\n"
        "print(hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    # Another value means another shop behind every scenario: then move CATALOGUE_VERSION.
    assert runs == {"40fb434738f87cf8"}
    assert generate_records(3, 50) != generate_records(4, 50)


def test_generated_shops_follow_the_schema(tmp_path: Path) -> None:
    records, attributes = generate_records(5, 120)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "items_shuffle_1000.json").write_text(json.dumps(records, indent=1))
    (tmp_path / "data" / "items_ins_v2_1000.json").write_text(json.dumps(attributes))
    read, made = read_checkout(str(tmp_path)), generated_catalogue(5, 120)
    assert [p.body for p in read.products] == [p.body for p in made.products]
    assert len(read.goals) == len(made.goals) > 400
    assert len({p.title for p in made.products}) == 120
    assert all(re.fullmatch(r"B0\d{4}", p.asin) for p in made.products)


def write_shop(folder: Path, products: str, attributes: object = ATTRIBUTES) -> str:
    (folder / "items_shuffle.json").write_text(products)
    (folder / "items_ins_v2.json").write_text(json.dumps(attributes))
    return str(folder)


def test_a_shop_of_ones_own(tmp_path: Path) -> None:
    shop = read_checkout(write_shop(tmp_path, json.dumps(RECORDS)))
    assert [p.asin[-1] for p in shop.products] == list("12345")
    assert len(shop.goals) == 4
    people = {"B000000005": [{"instruction": "A soft seat.", "instruction_attributes": ["soft"],
                              "instruction_options": ["black"]}]}  # fmt: skip
    (tmp_path / "items_human_ins.json").write_text(json.dumps(people))
    shop = read_checkout(str(tmp_path))
    assert len(shop.goals) == 1
    assert re.fullmatch(
        r"A soft seat, and price lower than \d0\.00 dollars", shop.goals[0].instruction
    )
    assert Visit(shop, shop.goals[0]).act("search[soft seat]").text.count("B00000000") == 0


LAMP = RECORDS[0]
UNPRICED = {key: value for key, value in RECORDS[2].items() if key != "pricing"}
BAD_OPTION = {**LAMP, "customization_options": {"Color": ["red"]}}


@pytest.mark.parametrize(
    ("products", "message"),
    [
        (json.dumps([LAMP, UNPRICED], indent=1), r"line 36 \(product 2\).*'pricing' is missing"),
        (json.dumps([LAMP, {**LAMP, "name": 5}]), r"line 1 .*: 'name' has to be str, got int"),
        (json.dumps([BAD_OPTION]), r"option 'Color' needs a 'value', got 'red'"),
        (json.dumps([LAMP, 7]), r"product 2\): expected an object, got int"),
        (json.dumps(RECORDS[:2], indent=1)[:-2], r"cut off"),
        (json.dumps(RECORDS[:2], indent=1)[:-40], r"line \d+: no JSON"),
        ("{}", r"expected a JSON array"),
        ("", r"expected a JSON array"),
    ],
)
def test_damaged_products_are_named_with_their_line(
    tmp_path: Path, products: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_checkout(write_shop(tmp_path, products))


def test_other_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="no folder"):
        read_checkout(str(tmp_path / "nowhere"))
    with pytest.raises(ScenarioError, match=r"none of items_shuffle_1000\.json"):
        read_checkout(str(tmp_path))
    folder = write_shop(tmp_path, json.dumps(RECORDS), [])
    with pytest.raises(DataError, match=r"items_ins_v2\.json: expected an object by asin"):
        read_checkout(folder)
    write_shop(tmp_path, json.dumps(RECORDS))
    (tmp_path / "items_human_ins.json").write_text('{"B000000001": [{"instruction": "x"}]}')
    with pytest.raises(DataError, match="'instruction_attributes' is missing"):
        read_checkout(folder)


def test_products_are_read_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "products.json"
    file.write_text("[\n" + ",\n".join(json.dumps(product(f"B{i}", "x")) for i in range(3)) + "\n]")
    assert [record["asin"] for record in read_products(file)] == ["B0", "B1", "B2"]
    file.write_text("[ ]")
    assert list(read_products(file)) == []
    empty = {"full_description": None, "pricing": None, "customization_options": None}
    shop = read_checkout(write_shop(tmp_path, json.dumps([{**RECORDS[0], **empty}])))
    assert shop.products[0].body == ("Kestrin Desk Lamp", "Price: $100.0")
    assert shop.products[0].description == ""
