from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gym_llmworld.backends import BackendConfig, SharedBackend, load_backend
from gym_llmworld.backends.base import Backend, Engine
from gym_llmworld.backends.scripted import Answer, ScriptedBackend, load_script
from gym_llmworld.core import Completion, Message, Sampling
from gym_llmworld.errors import CheckpointError, ContextOverflow

MODEL = "scripted:tests.scripted_world:answer"
CHAT = [Message("system", "room"), Message("user", "look")]


def echo(chat: Sequence[Message]) -> str:
    return f"echo {chat[-1].content}"


def test_answers_in_order_and_counts() -> None:
    backend = ScriptedBackend(echo)
    assert isinstance(backend, Backend)
    assert isinstance(backend, Engine)
    chats = [[Message("user", name)] for name in "abc"]
    answers = backend.generate(chats, [Sampling()] * 3)
    assert answers == [Completion(f"echo {name}", "stop") for name in "abc"]
    assert backend.generate([], []) == []
    assert backend.batch_sizes == [3, 0]
    assert (backend.stats.calls, backend.stats.requests) == (2, 3)


def test_a_script_may_cut_off_and_fail_in_place() -> None:
    cut, error = Completion("On the", "length"), ContextOverflow("too long")
    answers: dict[str, Answer] = {"cut": cut, "fail": error}
    backend = ScriptedBackend(lambda chat: answers[chat[0].content])
    chats = [[Message("user", "fail")], [Message("user", "cut")]]
    assert backend.generate(chats, [Sampling()] * 2) == [error, cut]


def test_needs_a_sampling_per_chat() -> None:
    with pytest.raises(ValueError, match="2 chats need as many samplings, got 1"):
        ScriptedBackend(echo).generate([CHAT, CHAT], [Sampling()])


def test_load_backend_by_name() -> None:
    backend = load_backend(MODEL)
    assert backend.name == MODEL
    assert backend.max_context is None
    [answer] = backend.generate([CHAT], [Sampling()])
    assert isinstance(answer, Completion)
    assert answer.text.endswith("look")
    backend.close()


@pytest.mark.parametrize(
    "spec", ["nowhere:answer", "tests.scripted_world:nothing", "no-colon", "sys:path"]
)
def test_unknown_scripts(spec: str) -> None:
    with pytest.raises(CheckpointError, match=r"scripted:.*function"):
        load_script(spec)


@pytest.mark.parametrize(
    ("model", "backend", "message"),
    [
        ("ftp://127.0.0.1/v1", "auto", "expected a checkpoint folder"),
        ("", "auto", "expected a checkpoint folder"),
        (MODEL, "tpu", "backend must be one of auto, hf, llamacpp, openai, scripted, vllm"),
        (MODEL, "hf", "backend='hf' cannot serve this model"),
        ("some/model", "scripted", "backend='scripted' cannot serve this model"),
    ],
)
def test_forms_that_nobody_serves(model: str, backend: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_backend(model, backend)


def test_options_are_checked() -> None:
    with pytest.raises(TypeError, match="takes no option, got 'speed'"):
        load_backend(MODEL, speed=2)


def test_config_resolves_folders(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    here = BackendConfig.resolve(".", max_slots=2, device="cpu")
    assert here == BackendConfig.resolve(str(tmp_path), device="cpu", max_slots=2)
    assert here.backend == "hf"
    assert BackendConfig.resolve("owner/name").model == "owner/name"
    assert BackendConfig.resolve("Qwen2.5-7B").model == "Qwen2.5-7B"


def test_one_engine_per_configuration() -> None:
    first, second = load_backend(MODEL), load_backend(MODEL, "scripted")
    assert first is second
    assert pickle.loads(pickle.dumps(first)) is first
    assert copy.deepcopy([first])[0] is first
    for _ in range(4):
        first.close()


def test_the_last_close_frees_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr(ScriptedBackend, "close", lambda self: closed.append(self.name))
    shared = SharedBackend(BackendConfig.resolve(MODEL))
    shared.acquire()
    copy.deepcopy(shared)
    shared.close()
    assert not closed
    shared.generate([CHAT], [Sampling()])
    shared.close()
    assert closed == [MODEL]
    shared.close()
    assert closed == [MODEL]
    shared.generate([CHAT], [Sampling()])
    assert shared.stats.calls == 1, "used after the last close, it starts a new engine"


def test_hf_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else name)
    with pytest.raises(ImportError, match=r"pip install 'gym-llmworld\[hf\]'"):
        load_backend("owner/name")


def test_importing_backends_is_light() -> None:
    import subprocess

    code = (
        "import sys, gym_llmworld.backends; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "model",
    [
        "./nothing",
        "~/nothing",
        "/nothing/at/all",
        "a/b/c",
        "models/nothing",
        "runs/nothing",
        "models/",
        "a\\b",
        "file.bin",
    ],
)
def test_a_path_without_a_folder_is_an_error_before_any_hub_is_asked(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").touch() if model == "models/" else (tmp_path / "models").mkdir()
    (tmp_path / "file.bin").touch()
    with pytest.raises(CheckpointError, match="no checkpoint folder there; expected"):
        BackendConfig.resolve(model)


def test_a_misspelled_folder_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "textworld").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="did you mean 'runs/textworld'"):
        BackendConfig.resolve("runs/textwrld")
