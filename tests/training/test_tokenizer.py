"""What becomes one token: names that actions use, wordings between them."""

from __future__ import annotations

from gym_llmworld.core import Message
from training.tokenizer import mine_names, mine_phrases, train_tokenizer

CONTEXT = "A room.\nA bowl holds a red apple and 1 cup.\n\nA bowl is on the table 2.\nGo."


def chat(*turns: tuple[str, str]) -> list[Message]:
    messages = [Message("system", CONTEXT)]
    for action, observation in turns:
        messages += [Message("user", action), Message("assistant", observation)]
    return messages


CHATS = [
    chat(
        ("pick up red apple", "You take the red apple from the bowl."),
        ("move red apple to table 2", "You move the red apple to the table 2."),
        ("eat unicorn", "There is no such thing."),
        ("go to north hall", "The hall is closed. It is dark.\n\tA hall"),
    )
] * 6


def test_names_are_what_actions_name_and_the_world_knows() -> None:
    # Nobody told of a unicorn or a north hall; the numbering is completed.
    assert mine_names(CHATS, minimum=5) == [" red apple", " table 1", " table 2"]
    assert mine_names(CHATS, minimum=7) == []


def test_a_name_may_follow_any_preposition() -> None:
    wired = [
        chat(("connect wire terminal 1 to anode in bulb", "anode, bulb: wire terminal 1."))
    ] * 5
    assert mine_names(wired) == [" anode", " bulb", " wire terminal 1"]


def test_what_is_more_than_a_numbered_name_is_no_name() -> None:
    asked = [chat(("open door 3", "You open door 3."), ("go to open door 3", "What?"))] * 5
    assert mine_names(asked) == [" door 1", " door 2", " door 3"]


def test_a_way_out_of_a_place_is_one_name() -> None:
    messages = chat(("go south @hall", "A kitchen."), ("take cup @hall", "You take the cup."))
    messages[0] = Message("system", "go south @hall\n-= Kitchen =-\nA cup. Go.")
    assert mine_names([messages] * 5) == [" @hall", " cup", " south @hall"]


def test_wordings_end_at_names_sentences_and_lines() -> None:
    texts = ["You move the red apple to the hall. It is dark.\n\tA hall", "(that is [a:b|c])"] * 3
    assert set(mine_phrases(texts, [" red apple", " hall"], minimum=3)) == {
        "You move the",
        " to the",
        " It is dark.",
        "\n\tA",
        "(that is",
        " [a:b",
        "|",
        "c]",
    } - {"|"}


def test_names_and_wordings_are_single_tokens_and_text_survives() -> None:
    tokenizer = train_tokenizer(CHATS * 5, merges=50)

    def pieces(text: str) -> list[str]:
        return [tokenizer.decode([i]) for i in tokenizer(text)["input_ids"]]

    assert pieces("You move the red apple to the table 1.") == [
        "You move the",
        " red apple",
        " to the",
        " table 1",
        ".",
    ]
    for text in (
        CONTEXT,
        "pick up  red apples",
        "ünïcode <|end|> [x|y]\t\n 12345",
        "table 2 table 22",
    ):
        ids = tokenizer(text, split_special_tokens=True)["input_ids"]
        assert tokenizer.decode(ids) == text
