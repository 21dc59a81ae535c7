"""`llmworld serve`, and the client against the servers that it starts.

The servers run on loopback where they are installed: `make test-vllm` installs both.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from typer.testing import CliRunner

import gym_llmworld  # noqa: F401 - registers the environments
from gym_llmworld import cli_serve
from gym_llmworld.backends.hf import HFBackend
from gym_llmworld.backends.openai_server import OpenAIBackend
from gym_llmworld.checkpoints import checkpoint_style, embedded_model
from gym_llmworld.core import Completion, Message, Sampling
from gym_llmworld.errors import BackendError, CheckpointError, ContextOverflow, MissingDependency
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.worlds import get_world

PATIENCE_SECONDS = 1500.0
ACTIONS = ("look", "inventory", "xyzzy", "look")


def installed(*packages: str) -> Any:
    """Makes `importlib.util.find_spec` know these packages only."""
    return lambda name: object() if name in packages else None


# --- what is started -----------------------------------------------------------------------------


@pytest.fixture
def only_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", installed("vllm"))


def test_vllm_serves_an_embedded_model(only_vllm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_serve, "_is_distributed", lambda name: False)
    monkeypatch.setattr(cli_serve, "_has_cuda", lambda: False)
    launch = cli_serve.plan("alfworld", port=9000, more=["--max-num-seqs", "512"])
    text = " ".join(launch.command)
    assert f"--model {embedded_model('alfworld')} --served-model-name alfworld@recall" in text
    assert "--load-format safetensors" in text
    assert "--block-size 32" in text
    assert "trust" not in text
    assert text.endswith("--host 127.0.0.1 --port 9000 --max-num-seqs 512")
    assert launch.environment["VLLM_NO_USAGE_STATS"] == "1"
    assert launch.gym_line() == (
        "env = gym.make('LLMWorld-ALFWorld-v0', model='http://127.0.0.1:9000/v1', "
        "prompt_style='recall')"
    )


def test_vllm_on_a_gpu_keeps_its_own_defaults(
    only_vllm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_serve, "_is_distributed", lambda name: True)
    monkeypatch.setattr(cli_serve, "_has_cuda", lambda: True)
    launch = cli_serve.plan("X1AOX1A/WorldModel-Alfworld-Qwen2.5-7B")
    assert launch.command[2:5] == [
        "vllm.entrypoints.cli.main",
        "serve",
        "X1AOX1A/WorldModel-Alfworld-Qwen2.5-7B",
    ]
    assert "--dtype" not in launch.command
    assert launch.gym_line() == (
        "env = gym.make('LLMWorld-...-v0', model='http://127.0.0.1:8000/v1', "
        "prompt_style='word2world')"
    )


def test_transformers_serves_where_there_is_no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = ("transformers", "fastapi", "uvicorn", "openai", "pydantic")
    monkeypatch.setattr(importlib.util, "find_spec", installed(*packages))
    model = embedded_model("alfworld")
    launch = cli_serve.plan(model, host="::")
    assert launch.command[3:] == ["serve", model, "--host", "::", "--port", "8000"]
    assert launch.options == {
        "model": "http://[::1]:8000/v1",
        "prompt_style": "recall",
        "backend_options": {"served_model": model},
    }


@pytest.mark.parametrize(
    ("server", "expected"),
    [("vllm", r"gym-llmworld\[vllm\]"), ("auto", r"gym-llmworld\[serve\]")],
)
def test_a_missing_server_is_told(
    monkeypatch: pytest.MonkeyPatch, server: str, expected: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", installed())
    with pytest.raises(MissingDependency, match=expected):
        cli_serve.plan("alfworld", server=server)


def test_bad_models_and_servers_are_refused(tmp_path: Path) -> None:
    for model in ("nowhere", str(tmp_path / "x"), "./x", "a/b/c", "~/x"):
        with pytest.raises(CheckpointError, match="or a world: alfworld"):
            cli_serve.plan(model)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        cli_serve.plan(str(tmp_path))
    with pytest.raises(ValueError, match="server must be one of auto, vllm, transformers"):
        cli_serve.plan("alfworld", server="sglang")


def test_a_dry_run_shows_and_starts_nothing(
    only_vllm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    monkeypatch.setattr(cli_serve, "_has_cuda", lambda: False)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("started"))
    app = typer.Typer()
    app.command()(cli_serve.serve)
    result = CliRunner().invoke(app, ["alfworld", "--dry-run", "--", "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert "prompt_style='recall'" in result.output
    assert "--seed 3" in result.output


# --- real servers --------------------------------------------------------------------------------


@dataclass
class Server:
    """A real server with the embedded model.

    Attributes:
        kind: Which one.
        options: Of `gym.make`, as `llmworld serve` prints them.
        process: The server itself.
    """

    kind: str
    options: dict[str, Any]
    process: subprocess.Popen[bytes]

    def client(self, **more: Any) -> OpenAIBackend:
        own = self.options.get("backend_options", {})
        return OpenAIBackend(self.options["model"], **own | {"timeout": 600.0} | more)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("vllm", marks=pytest.mark.vllm),
        pytest.param("transformers", marks=pytest.mark.slow),
    ],
)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    try:
        launch = cli_serve.plan("alfworld", server=request.param, port=port)
    except MissingDependency as missing:
        pytest.skip(f"{missing} Or run: make test-vllm")
    folder = tmp_path_factory.mktemp(request.param)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            launch.command,
            env={**launch.environment, **os.environ, "HF_HUB_CACHE": str(folder)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(process, port, folder / "log")
        yield Server(request.param, dict(launch.options), process)
    finally:
        # With the engine's own processes, which may outlive a server that was killed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)


def wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    started = time.monotonic()
    while time.monotonic() - started < PATIENCE_SECONDS:
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    pytest.fail(log.read_text(errors="replace")[-3000:])


real = pytest.mark.timeout(PATIENCE_SECONDS + 600)


def chats() -> list[list[Message]]:
    protocol = get_world("alfworld").protocol(
        checkpoint_style(embedded_model("alfworld"), "alfworld")
    )
    starts = ScenarioStore("alfworld").of_split("valid_unseen")[:3]
    return [list(protocol.encode(start, (), action)) for start in starts for action in ACTIONS[:2]]


@real
def test_a_server_writes_what_the_local_model_writes(server: Server) -> None:
    client, local = server.client(), HFBackend(embedded_model("alfworld"))
    turns = chats()
    for _ in range(2):
        samplings = [Sampling(max_tokens=64)] * len(turns)
        theirs, ours = client.generate(turns, samplings), local.generate(turns, samplings)
        for remote, here in zip(theirs, ours, strict=True):
            assert isinstance(remote, Completion)
            assert isinstance(here, Completion)
            assert (remote.text, remote.finish_reason) == (here.text, here.finish_reason)
            assert remote.prompt_tokens == here.prompt_tokens
            if server.kind == "vllm":
                assert remote.logprobs == pytest.approx(here.logprobs, abs=1e-3)
        turns = [
            [*turn, Message("assistant", answer.text), Message("user", "look")]
            for turn, answer in zip(turns, ours, strict=True)
            if isinstance(answer, Completion)
        ]
    if server.kind == "vllm":
        assert client.served_model == "alfworld@recall"
        assert client.max_context == 2048
    client.close()


@real
def test_a_served_world_is_the_local_world(server: Server) -> None:
    played = []
    for options in (server.options, {}):
        envs = gym.make_vec("LLMWorld-ALFWorld-v0", num_envs=3, **options)
        envs.reset(seed=5, options={"split": "valid_unseen"})
        played.append([envs.step((action,) * 3)[0] for action in ACTIONS])
        envs.close()
    assert played[0] == played[1]


@real
def test_a_full_context_ends_the_episode(server: Server) -> None:
    client = server.client(max_context=2048)
    long = [Message("system", "You " * 2100), Message("user", "look")]
    short, full = client.generate([chats()[0], long], [Sampling(max_tokens=64)] * 2)
    assert isinstance(short, Completion)
    assert isinstance(full, ContextOverflow), full
    client.close()


@real
def test_a_seed_repeats_an_answer(server: Server) -> None:
    if server.kind == "transformers":
        pytest.skip("transformers serve seeds the whole process, not the request")
    client = server.client()
    samplings = [Sampling(1.5, 1.0, 64, seed) for seed in (1, 1, 2, 3, 4)]
    results = client.generate([chats()[0]] * 5, samplings)
    texts = [r.text for r in results if isinstance(r, Completion)]
    assert len(texts) == 5
    assert texts[0] == texts[1]
    client.close()


@real
def test_a_server_that_hangs_and_then_dies(server: Server) -> None:
    """The last test of a server: it is gone afterwards."""
    client = server.client(retries=1)
    server.process.send_signal(signal.SIGSTOP)
    hasty = OpenAIBackend(
        server.options["model"], served_model=client.served_model, timeout=1.0, retries=0
    )
    [hung] = hasty.generate(chats()[:1], [Sampling()])
    assert isinstance(hung, BackendError)
    assert "no complete answer within timeout=1 seconds" in str(hung)
    hasty.close()
    server.process.kill()
    server.process.wait(timeout=60)
    with pytest.raises(BackendError, match="no server answers"):
        client.generate(chats(), [Sampling()] * len(chats()))
    client.close()
