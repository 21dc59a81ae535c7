"""SFT of world models, against TRL's own loss, hand-made masks and generation."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTTrainer

from gym_llmworld.checkpoints import checkpoint_style
from gym_llmworld.core import Chat, Episode, Message, Scenario, Step
from gym_llmworld.errors import DataError
from training.card import LOCK_FILE
from training.config import Config
from training.data import Conversations, read_conversations
from training.exact_match import tokenize, turn_match
from training.scratch import kinds_init, retokenized, small_llama
from training.sft import build_trainer, load, main, parser
from training.tokenizer import END, train_tokenizer
from training.trainer import last_checkpoint

ROOT = Path(__file__).parents[2]
SIZES = ["--layers=2", "--width=128", "--heads=4", "--hidden=64", "--context=256", "--threads=1"]
# TRL warns about its own experimental parts and torch about its own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")


def make_episode(number: int, turns: int = 4) -> Episode:
    rng = random.Random(number)
    names = [f"cabinet {i}" for i in range(3, 0, -1)]
    contents = {name: [f"{rng.choice(['egg', 'mug'])} {rng.randint(1, 3)}"] for name in names}
    hidden = {
        "receptacles": [
            {"name": name, "openable": True, "open": False, "contents": contents[name]}
            for name in names
        ],
        "toggles": {},
    }
    scenario = Scenario(
        f"train/{number}", "alfworld", "train", "put a mug in cabinet.", "", None, hidden
    )
    steps = []
    for _ in range(turns // 2):
        name = rng.choice(names)
        steps.append(Step(f"go to {name}", f"You arrive at {name}. The {name} is closed."))
        seen = f"You open the {name}. The {name} is open. In it, you see a {contents[name][0]}."
        steps.append(Step(f"open {name}", seen))
    last = steps.pop()
    steps.append(Step(last.action, last.observation, reward=1.0, terminated=True))
    return Episode(scenario, tuple(steps), "real", "test", number)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("episodes")
    train, heldout = folder / "train.jsonl", folder / "heldout.jsonl"
    for file, numbers in ((train, range(24)), (heldout, range(100, 104))):
        lines = [json.dumps(make_episode(n).to_json()) for n in numbers]
        file.write_text("\n".join(lines) + "\n")
    return train, heldout


@pytest.fixture(scope="module")
def chats(files: tuple[Path, Path]) -> tuple[Chat, ...]:
    return read_conversations(files[:1], "engine").chats


@pytest.fixture(scope="module")
def tokenizer(chats: tuple[Chat, ...]) -> Any:
    return train_tokenizer(chats, merges=50, minimum=5)


def tiny_config(files: tuple[Path, Path], output: Path, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "data": files[:1],
        "eval_data": files[1:],
        "output": output,
        "layers": 2,
        "width": 128,
        "heads": 4,
        "hidden": 64,
        "context": 256,
        "max_steps": 2,
        "batch_size": 4,
        "threads": 1,
    }
    return Config(**{**values, **changes})


# --- the tokenizer -----------------------------------------------------------------------------


def test_puzzles_are_read_row_by_row(files: tuple[Path, Path], tmp_path: Path) -> None:
    state = "P_OG\nO___\nPlayer at (0,0); holes at (0,2) and (1,0).\nYou have 7 actions left."
    chat = (Message("system", f"Firm ice.\n{state}"), Message("user", "Down || Up"))
    config = tiny_config(files, tmp_path, tokenizer="states")
    _, tokenizer = load(config, [(*chat, Message("assistant", state))])
    ids = tokenizer(f"Firm ice.\n{state}")["input_ids"]
    pieces = [tokenizer.decode([i]) for i in ids]
    assert pieces == [
        "Firm ice.\n", "P_OG\n", "O___\n", "Player at ", "(0,0)", "; ", "holes at ", "(0,2)",
        " and ", "(1,0)", ".", "\n", "You have ", "7", " actions left.",
    ]  # fmt: skip
    assert tokenizer.decode(ids) == f"Firm ice.\n{state}"
    short = "(1,0)P (0,0)_ 7 [SUCCESS]"
    _, tokenizer = load(config, [(*chat, Message("assistant", short))])
    pieces = [tokenizer.decode([i]) for i in tokenizer(short)["input_ids"]]
    assert pieces == ["(1,0)", "P ", "(0,0)", "_ ", "7", " [SUCCESS]"]
    # What no episode had is spelled; what no puzzle says cannot be told apart.
    assert [tokenizer.decode([i]) for i in tokenizer("OOOO\n")["input_ids"]] == [*"OOOO", "\n"]
    unknown = tokenizer("漢")["input_ids"]
    assert unknown == [tokenizer.unk_token_id]
    with pytest.raises(ValueError, match="tokenizer must be one of names, states"):
        tiny_config(files, tmp_path, tokenizer="words")


def test_entities_and_stock_phrases_are_single_tokens(tokenizer: Any) -> None:
    text = "You arrive at cabinet 2. The cabinet 2 is closed."
    assert [tokenizer.decode([i]) for i in tokenizer(text)["input_ids"]] == [
        "You arrive at",
        " cabinet 2",
        ".",
        " The",
        " cabinet 2",
        " is closed.",
    ]


def test_instructions_stay_open_word_by_word(tokenizer: Any) -> None:
    tokens = [tokenizer.decode([i]) for i in tokenizer("put a mug in cabinet.")["input_ids"]]
    assert len(tokens) >= 6, tokens


def test_any_text_survives_files_and_back(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(0)
    alphabet = " \n\t.,aZ09é漢🙂\u200b\u0301<|end|>[SUCCESS]cabinet 1"
    texts = ["", " ", "\n\n  \n", "cabinet 12 cabinet 1234 cabinet 1x", "You arrive athens"]
    texts += ["".join(rng.choices(alphabet, k=rng.randint(1, 40))) for _ in range(300)]
    texts += ["".join(chr(rng.randrange(1, 0xD800)) for _ in range(20)) for _ in range(100)]
    for text in texts:
        assert loaded.decode(loaded(text)["input_ids"]) == text
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    chat = [{"role": "user", "content": "look"}]
    assert loaded.apply_chat_template(chat) == tokenizer.apply_chat_template(chat)


def test_a_longer_chat_only_appends(tokenizer: Any, chats: tuple[Chat, ...]) -> None:
    messages = [{"role": m.role, "content": m.content} for m in chats[0]]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    for end in range(2, len(messages), 2):
        asked = tokenizer.apply_chat_template(
            messages[:end], tokenize=False, add_generation_prompt=True
        )
        assert whole.startswith(asked)


# --- what is learned ---------------------------------------------------------------------------


def test_only_observations_and_their_ends_are_supervised(
    files: tuple[Path, Path], chats: tuple[Chat, ...], tmp_path: Path
) -> None:
    config = tiny_config(files, tmp_path)
    model, tokenizer = load(config, chats)
    data = read_conversations(config.data, "engine")
    trainer = build_trainer(config, model, tokenizer, data, Conversations(), "test")
    for row, chat in zip(trainer.train_dataset, chats, strict=True):
        expected_ids: list[int] = []
        expected_labels: list[int] = []
        for message in chat:
            head = tokenizer(f"<|{message.role}|>")["input_ids"]
            body = tokenizer(message.content)["input_ids"]
            learned = message.role == "assistant"
            body += tokenizer(END)["input_ids"] if learned else []
            expected_ids += head + body
            expected_labels += [-100] * len(head) + (body if learned else [-100] * len(body))
        assert list(row["input_ids"]) == expected_ids
        assert list(row["labels"]) == expected_labels


def test_loss_equals_the_stock_trainers(
    files: tuple[Path, Path], chats: tuple[Chat, ...], tmp_path: Path
) -> None:
    config = tiny_config(files, tmp_path)
    model, tokenizer = load(config, chats)
    data = read_conversations(config.data, "engine")
    trainer = build_trainer(config, model, tokenizer, data, Conversations(), "test")
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    model.train()
    for count in (None, torch.tensor(37)):
        ours = trainer.compute_loss(model, dict(batch), num_items_in_batch=count)
        stock = SFTTrainer.compute_loss(trainer, model, dict(batch), num_items_in_batch=count)
        torch.testing.assert_close(ours, stock, atol=1e-5, rtol=0)


def test_every_weight_moves_in_one_step(
    files: tuple[Path, Path], chats: tuple[Chat, ...], tmp_path: Path
) -> None:
    config = tiny_config(files, tmp_path, max_steps=1, warmup_steps=0, weight_decay=0.0)
    model, tokenizer = load(config, chats)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    data = read_conversations(config.data, "engine")
    build_trainer(config, model, tokenizer, data, Conversations(), "test").train()
    still = [name for name, w in model.named_parameters() if torch.equal(w, before[name])]
    assert not still


def test_half_the_bits_give_nearly_the_same_gradients(
    files: tuple[Path, Path], chats: tuple[Chat, ...], tmp_path: Path
) -> None:
    data, found = read_conversations((files[0],), "engine"), []
    for bf16 in (False, True):
        config = tiny_config(files, tmp_path, bf16=bf16)
        model, tokenizer = load(config, chats)
        trainer = build_trainer(config, model, tokenizer, data, Conversations(), "test")
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
        trainer.accelerator.backward(trainer.compute_loss(model.train(), batch))
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        found.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    whole, half = found
    assert not torch.equal(whole, half)
    assert torch.cosine_similarity(whole, half, dim=0) > 0.999


def test_recall_initialisation_looks_up_before_any_training() -> None:
    ids = torch.randint(20, 400, (1, 300), generator=torch.Generator().manual_seed(0))
    # 'cabinet 3 | you see a | X' ... 'cabinet 3 | you see a' -> X
    ids[0, 290:292] = ids[0, 100:102]
    sizes = {"layers": 2, "width": 256, "heads": 4, "hidden": 64, "context": 512}
    ranks = {}
    for recall in (True, False):
        model = small_llama(["?"] * 400, **sizes, pad_id=0, eos_id=1, seed=0, recall=recall)
        with torch.no_grad():
            logits = model(ids).logits[0, 291]
        ranks[recall] = int((logits > logits[ids[0, 102]]).sum())
    assert ranks[True] == 0
    assert ranks[False] > 5


def test_tokens_that_share_words_start_alike() -> None:
    texts = [" mug 1", " mug 2", " mug", " egg 1", " is open. In it, you see nothing.", ""]
    texts.append(" is closed. In it, you see nothing.")
    model = small_llama(
        texts, layers=2, width=1024, heads=4, hidden=8, context=9, pad_id=0, eos_id=1, seed=0
    )
    own = torch.nn.functional.normalize(model.get_input_embeddings().weight[:, 1:], dim=1)
    alike = own @ own.T
    assert alike[0, 1] > 0.15
    assert alike[0, 2] > 0.2
    assert alike[4, 6] > 0.25
    assert alike[1, 3].abs() < 0.1
    assert alike[0, 5].abs() < 0.1


def test_kinds_begin_where_their_numbered_names_are() -> None:
    texts = ["<pad>", "<end>", " apple", " apple 1", " apple 2", " mug", " fork 1", " clean"]
    model = small_llama(
        texts, layers=2, width=128, heads=4, hidden=32, context=64, pad_id=0, eos_id=1, seed=0
    )
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_()
    before = model.get_input_embeddings().weight.detach().clone()
    kinds_init(model, texts)
    after = model.get_input_embeddings().weight.detach()
    assert [texts[i] for i in range(len(texts)) if not torch.equal(before[i], after[i])] == [
        " apple"
    ]
    direction = before[3] + before[4]
    assert torch.allclose(after[2] / after[2].norm(), direction / direction.norm(), atol=1e-5)
    assert after[2].norm().item() == pytest.approx(
        (before[3].norm().item() + before[4].norm().item()) / 2, rel=1e-5
    )


def test_a_new_tokenizer_begins_with_what_the_old_one_knew() -> None:
    chats = [(Message("system", "."), Message("user", "open cabinet 1"), Message("assistant", "."))]
    old = train_tokenizer(chats * 30)
    new = train_tokenizer([*chats, (*chats[0], Message("user", "open red box"))] * 30)
    model = small_llama(
        [old.decode([i]) for i in range(len(old))],
        layers=2, width=128, heads=4, hidden=32, context=64, pad_id=0, eos_id=4, seed=0,
    )  # fmt: skip
    before = model.get_input_embeddings().weight.detach().clone()
    retokenized(model, old, new)
    after = model.get_input_embeddings().weight.detach()
    assert len(after) == len(new) == model.config.vocab_size
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    known, added = old.get_vocab(), set(new.get_vocab()) - set(old.get_vocab())
    assert added
    for token, index in new.get_vocab().items():
        if token in known:
            assert torch.equal(after[index], before[known[token]])
            continue
        pieces = before[old(new.decode([index]))["input_ids"]]
        alike = torch.nn.functional.cosine_similarity(after[index], pieces.mean(0), dim=0)
        assert alike.item() == pytest.approx(1, abs=1e-5)
        assert after[index].norm().item() == pytest.approx(pieces.norm(dim=1).mean().item())
    assert model.generation_config.eos_token_id == new.eos_token_id


def test_recall_initialisation_refuses_what_it_does_not_fit() -> None:
    with pytest.raises(ValueError, match="at least 2 layers"):
        small_llama(
            ["?"] * 99,
            layers=1,
            width=128,
            heads=4,
            hidden=8,
            context=9,
            pad_id=0,
            eos_id=1,
            seed=0,
        )


# --- exact match -------------------------------------------------------------------------------


def test_exact_match_equals_greedy_generation(
    files: tuple[Path, Path], chats: tuple[Chat, ...], tmp_path: Path
) -> None:
    config = tiny_config(files, tmp_path, max_steps=14, learning_rate=3e-3, warmup_steps=5)
    model, tokenizer = load(config, chats)
    data = read_conversations(config.data, "engine")
    build_trainer(config, model, tokenizer, data, Conversations(), "test").train()
    model.eval()
    heldout = chats[:6]
    right = total = 0
    for chat in heldout:
        messages = [{"role": m.role, "content": m.content} for m in chat]
        for end in range(2, len(messages), 2):
            asked = tokenizer.apply_chat_template(
                messages[:end], add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            made = model.generate(**asked, do_sample=False, max_new_tokens=40)
            text = tokenizer.decode(made[0, asked["input_ids"].shape[1] :])
            right += text == messages[end]["content"] + END
            total += 1
    match = turn_match(model, [tokenize(tokenizer, chat) for chat in heldout], batch_tokens=200)
    assert (match.all.hits, match.all.n) == (right, total)
    assert 0 < right < total, "a test of agreement needs both outcomes"


def test_turns_beyond_the_context_count_as_wrong(tokenizer: Any, chats: tuple[Chat, ...]) -> None:
    tokenized = [tokenize(tokenizer, chat) for chat in chats[:4]]
    sizes: dict[str, Any] = {"layers": 2, "width": 128, "heads": 4, "hidden": 64, "context": 12}
    model = small_llama(["?"] * len(tokenizer), **sizes, pad_id=0, eos_id=4, seed=0)
    match = turn_match(model, tokenized)
    assert match.all.n == sum(len(chat.spans) for chat in tokenized)
    assert match.all.hits == 0


# --- data --------------------------------------------------------------------------------------


def test_word2world_files_are_read_as_they_are(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "context"},
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": "Nothing. [SUCCESS]"},
    ]
    file = tmp_path / "alfworld_train.json"
    file.write_text(json.dumps([{"messages": messages, "extra": 1}]))
    data = read_conversations([file], "word2world")
    assert list(data.chats[0]) == [Message(m["role"], m["content"]) for m in messages]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "expected a list"),
        ('[{"conversations": []}]', "item 0"),
        ('[{"messages": [{"role": "user", "content": "look"}]}]', "expected the roles"),
        ("[]", "no episode"),
    ],
)
def test_bad_files_are_named(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        read_conversations([file], "word2world")


# --- the program -------------------------------------------------------------------------------


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--checkpoint-minutes" in text
    assert "--no-recall-init" in text


def test_mistakes_end_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "none.jsonl")]) == 2
    assert main(["--lora-rank", "4"]) == 2
    assert "LoRA needs a model" in capsys.readouterr().err
    assert main(["--kinds-init"]) == 2
    assert "kinds_init changes a trained model" in capsys.readouterr().err
    assert main(["--retokenize"]) == 2
    assert "retokenize changes a trained model" in capsys.readouterr().err
    assert main(["--teacher", "search"]) == 2
    assert "teacher is for agents; pass --role agent" in capsys.readouterr().err


def test_a_second_run_is_kept_out_of_the_folder_while_the_first_lives(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    first = (
        "import sys; from filelock import FileLock\n"
        f"with FileLock({str(output / LOCK_FILE)!r}): print('has it', flush=True); sys.stdin.read()"
    )
    command = ["--data", str(files[0]), "--max-steps", "1", *SIZES, "--output", str(output)]
    with subprocess.Popen(
        [sys.executable, "-c", first], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        assert main(command) == 2
        assert "is being written by another process" in capsys.readouterr().err
        process.kill()
    assert main(command) == 0
    assert (output / "model.safetensors").is_file()


def test_a_run_leaves_a_checkpoint_that_others_can_load(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch, tuned = tmp_path / "scratch", tmp_path / "tuned"
    common = ["--data", str(files[0]), "--eval-data", str(files[1]), "--max-steps", "2"]
    assert main([*common, *SIZES, "--output", str(scratch)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-2])["turns"] == 16

    card = json.loads((scratch / "llmworld.json").read_text())
    assert (card["format"], card["world"], card["base"]) == (1, "alfworld", None)
    assert checkpoint_style(str(scratch), "alfworld") == "engine"
    assert (scratch / "chat_template.jinja").is_file()
    assert "--max-steps 2" in (scratch / "README.md").read_text()
    points = [json.loads(x) for x in (scratch / "training.jsonl").read_text().splitlines()]
    assert any("em_lookup" in point for point in points)

    more = ["--model", str(scratch), "--lora-rank", "2", "--output", str(tuned), "--context", "256"]
    assert main([*common, *more]) == 0
    model = AutoModelForCausalLM.from_pretrained(tuned)
    start = AutoModelForCausalLM.from_pretrained(scratch)
    assert type(model) is type(start)
    weights = dict(start.named_parameters())
    assert any(not torch.equal(w, weights[n]) for n, w in model.named_parameters())
    assert json.loads((tuned / "llmworld.json").read_text())["base"] == str(scratch)


def test_an_incomplete_checkpoint_is_passed_over(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}" / "progress.json").write_text('{"seconds": 3.5}')
    assert last_checkpoint(tmp_path) == (tmp_path / "checkpoint-10", 3.5)


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_end(files: tuple[Path, Path], tmp_path: Path) -> None:
    def command(output: Path) -> list[str]:
        return [
            sys.executable, "-m", "training.sft", "--data", str(files[0]), "--output", str(output),
            *SIZES, "--max-steps", "30", "--checkpoint-minutes", "0", "--batch-size", "4",
        ]  # fmt: skip

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(command(killed), cwd=ROOT)
    deadline = time.monotonic() + 200
    while last_checkpoint(killed) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = last_checkpoint(killed)
    assert found is not None
    reached = int(found[0].name.rsplit("-", 1)[1])
    assert 0 < reached < 30, "killed too late for this test"

    for output in (killed, whole):
        subprocess.run(command(output), cwd=ROOT, check=True)
    state = json.loads((killed / "checkpoint-30" / "trainer_state.json").read_text())
    assert state["global_step"] == 30
    one = AutoModelForCausalLM.from_pretrained(killed)
    other = dict(AutoModelForCausalLM.from_pretrained(whole).named_parameters())
    for name, weight in one.named_parameters():
        torch.testing.assert_close(weight, other[name], atol=1e-4, rtol=0)
