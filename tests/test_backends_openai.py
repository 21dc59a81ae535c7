from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gym_llmworld.backends import openai_server_transport as transport
from gym_llmworld.backends.base import Engine
from gym_llmworld.backends.openai_server import OpenAIBackend
from gym_llmworld.core import Completion, Message, Sampling
from gym_llmworld.errors import BackendError, ContextOverflow, MissingDependency

pytest.importorskip("httpx")

KEY = "sk-very-secret-4711"
GREEDY = Sampling()
VLLM_CARD = {"id": "m", "object": "model", "owned_by": "vllm", "max_model_len": 100}


@dataclass
class Reply:
    """What the server does with one request."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False


@dataclass
class Request:
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    peer: object

    @property
    def text(self) -> str:
        return str(self.body["messages"][-1]["content"])


def completion(
    text: Any = "You see nothing.",
    *,
    finish: Any = "stop",
    logprobs: Any = None,
    usage: Any = None,
) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs}
    return {"object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}


def refusal(message: str, **details: Any) -> dict[str, Any]:
    return {"error": {"message": message, **details}}


def echo(request: Request) -> Reply:
    return Reply(completion(f"<{request.text}>"))


class Server(ThreadingHTTPServer):
    """Answers by script, and remembers what it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: Any = {"object": "list", "data": [{"id": "m", "object": "model"}]}
        self.answer: Callable[[Request], Reply] = echo
        self.list_models: Callable[[Request], Reply] = lambda _: Reply(self.models)
        self.chats: list[Request] = []
        self.listings: list[Request] = []
        self.lock = threading.Lock()
        self.busy = self.peak = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def script(self, *replies: Reply) -> None:
        """Gives one reply after the other, the last one for ever."""
        left = list(replies)
        self.answer = lambda _: left.pop(0) if len(left) > 1 else left[0]

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        request = Request(self.path, dict(self.headers), {}, self.client_address)
        self.server.listings.append(request)
        self.reply(self.server.list_models(request))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        request = Request(self.path, dict(self.headers), body, self.client_address)
        with self.server.lock:
            self.server.chats.append(request)
            self.server.busy += 1
            self.server.peak = max(self.server.peak, self.server.busy)
            reply = self.server.answer(request)
        time.sleep(reply.delay)
        with self.server.lock:
            self.server.busy -= 1
        self.reply(reply)

    def reply(self, reply: Reply) -> None:
        if reply.drop:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_PAUSE", 0.002)
    monkeypatch.setattr(transport, "LONGEST_PAUSE", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


Connect = Callable[..., OpenAIBackend]


@pytest.fixture
def connect(server: Server) -> Iterator[Connect]:
    made: list[OpenAIBackend] = []

    def connect(**options: Any) -> OpenAIBackend:
        made.append(OpenAIBackend(server.url, **options))
        return made[-1]

    yield connect
    for backend in made:
        backend.close()


def chat(text: str) -> list[Message]:
    return [Message("system", "a room"), Message("user", text)]


def ask(
    backend: OpenAIBackend, text: str = "look", sampling: Sampling = GREEDY
) -> Completion | BackendError:
    (result,) = backend.generate([chat(text)], [sampling])
    return result


def failure(backend: OpenAIBackend) -> str:
    result = ask(backend)
    assert isinstance(result, BackendError)
    assert not isinstance(result, ContextOverflow)
    return str(result)


# --- what is asked -------------------------------------------------------------------------------


def test_the_request_says_everything(server: Server, connect: Connect) -> None:
    backend = connect()
    assert isinstance(backend, Engine)
    sampling = Sampling(temperature=0.7, top_p=0.9, max_tokens=17, seed=5)
    messages = [*chat("look"), Message("assistant", 'ein "Käse" \ud800'), Message("user", "go")]
    assert backend.generate([messages], [sampling]) == [Completion("<go>", "stop")]
    (request,) = server.chats
    assert request.path == "/v1/chat/completions"
    assert request.body == {
        "model": "m",
        "messages": [{"role": m.role, "content": m.content} for m in messages],
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 17,
        "seed": 5,
        "logprobs": True,
    }


def test_a_greedy_request_has_no_seed(server: Server, connect: Connect) -> None:
    ask(connect(), sampling=Sampling(seed=5))
    assert server.chats[0].body["temperature"] == 0
    assert "seed" not in server.chats[0].body


def test_sampling_defaults_of_the_checkpoint_are_neutralised(
    server: Server, connect: Connect
) -> None:
    server.models = {"data": [VLLM_CARD]}
    ask(connect())
    assert server.chats[0].body["repetition_penalty"] == 1.0
    assert server.chats[0].body["top_k"] == -1


# --- what comes back -----------------------------------------------------------------------------


def test_tokens_and_logprobs_are_read(server: Server, connect: Connect) -> None:
    content = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1}]
    usage = {
        "prompt_tokens": 40,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 32},
    }
    server.script(Reply(completion("", logprobs={"content": content}, usage=usage)))
    backend = connect()
    assert ask(backend) == Completion("", "stop", (-0.5, -1.0), 40, 32)
    stats = backend.stats
    assert (stats.calls, stats.requests) == (1, 1)
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (40, 32, 2)


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        {"content": None},
        {"content": ["a"]},
        {"content": [{"logprob": -1.0}, {"logprob": None}]},
        {"content": [{"logprob": float("nan")}]},
        {"tokens": ["a"], "token_logprobs": [-1.0]},
    ],
)
def test_partial_logprobs_are_none(server: Server, connect: Connect, logprobs: Any) -> None:
    server.script(Reply(completion("x", logprobs=logprobs)))
    assert ask(connect()) == Completion("x", "stop")


@pytest.mark.parametrize("usage", [None, [], {"prompt_tokens": "7"}, {"prompt_tokens": -1}])
def test_unknown_usage_counts_as_zero(server: Server, connect: Connect, usage: Any) -> None:
    server.script(Reply(completion("x", usage=usage)))
    assert ask(connect()) == Completion("x", "stop")


def test_a_cut_off_answer_is_data(server: Server, connect: Connect) -> None:
    server.script(Reply(completion("You se", finish="length")))
    assert ask(connect()) == Completion("You se", "length")


def test_a_server_without_logprobs_is_asked_once_per_chat_from_then_on(
    server: Server, connect: Connect
) -> None:
    def answer(request: Request) -> Reply:
        if "logprobs" in request.body:
            return Reply(refusal("logprobs are not supported with this model"), 400)
        return echo(request)

    server.answer = answer
    backend = connect()
    for _ in range(3):
        assert ask(backend) == Completion("<look>", "stop")
    assert len(server.chats) == 4


def test_a_refusal_that_quotes_the_request_keeps_logprobs(server: Server, connect: Connect) -> None:
    server.script(Reply(refusal("bad message in {'logprobs': true}"), 400))
    backend = connect()
    assert "bad message" in failure(backend)
    server.answer = echo
    ask(backend)
    assert server.chats[-1].body["logprobs"] is True


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"choices": [{"mess', "finish_reason"),
        (b"", "without a body"),
        (b"\xff\xfe\xfa", "finish_reason"),
        (b"[" * 100_000, "finish_reason"),
        (b"<html>proxy</html>", "<html>proxy"),
        ({}, "finish_reason"),
        ({"choices": []}, "finish_reason"),
        ({"choices": ["x"]}, "finish_reason"),
        (refusal("out of memory"), "out of memory"),
        (completion(None), "text in choices"),
        (completion(["x"]), "text in choices"),
        (completion("\ud800"), "text in choices"),
        ({"choices": [{"finish_reason": "stop"}]}, "text in choices"),
        (completion(None, finish="tool_calls"), "'tool_calls'"),
        (completion("x", finish="content_filter"), "'content_filter'"),
        (completion("x", finish=None), "None"),
        (completion("x", finish=["stop"]), "instead of \"['stop']\""),
    ],
)
def test_nonsense_is_an_error_in_its_place(
    server: Server, connect: Connect, body: Any, expected: str
) -> None:
    server.answer = lambda r: Reply(body) if r.text == "b" else echo(r)
    a, b, c = connect().generate([chat("a"), chat("b"), chat("c")], [GREEDY] * 3)
    assert (a, c) == (Completion("<a>", "stop"), Completion("<c>", "stop"))
    assert type(b) is BackendError
    assert expected in str(b)
    assert server.url in str(b)
    assert "expected" in str(b)
    assert len(str(b)) < 500
    assert len(server.chats) == 3, "an answer is not asked for twice"


def test_a_lying_encoding_is_an_error(server: Server, connect: Connect) -> None:
    server.script(Reply(b"no gzip", headers={"Content-Encoding": "gzip"}))
    assert "broken encoding" in failure(connect())


def test_an_excerpt_has_200_characters(server: Server, connect: Connect) -> None:
    server.script(Reply(b"x" * 5000))
    assert max(map(len, re.findall("x+", failure(connect())))) == 200


# --- order and concurrency -----------------------------------------------------------------------


def test_results_keep_the_order_of_the_chats(server: Server, connect: Connect) -> None:
    server.answer = lambda r: Reply(completion(r.text), delay=0.02 * (int(r.text) % 3))
    texts = [str(i) for i in range(40)]
    results = connect(concurrency=16).generate([chat(t) for t in texts], [GREEDY] * 40)
    assert [r.text for r in results if isinstance(r, Completion)] == texts


def test_concurrency_is_bounded_over_all_threads_and_connections_are_kept(
    server: Server, connect: Connect
) -> None:
    server.answer = lambda r: Reply(completion(r.text), delay=0.02)
    backend = connect(concurrency=4)
    found: dict[str, list[Completion | BackendError]] = {}

    def use(name: str) -> None:
        found[name] = backend.generate([chat(f"{name}{i}") for i in range(8)], [GREEDY] * 8)

    threads = [threading.Thread(target=use, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: [r.text for r in rs if isinstance(r, Completion)] for n, rs in found.items()} == {
        name: [f"{name}{i}" for i in range(8)] for name in "abc"
    }
    assert server.peak == 4
    assert len({request.peer for request in server.chats}) <= 4
    assert backend.stats.calls == 3
    assert backend.stats.requests == 24


def test_many_chats_are_queued(server: Server, connect: Connect) -> None:
    results = connect(concurrency=8).generate([chat(str(i)) for i in range(200)], [GREEDY] * 200)
    assert results == [Completion(f"<{i}>", "stop") for i in range(200)]
    assert server.peak <= 8


def test_no_chats_no_requests(server: Server, connect: Connect) -> None:
    assert connect().generate([], []) == []
    assert not server.chats


def test_bad_batches_are_refused(connect: Connect) -> None:
    backend = connect()
    with pytest.raises(ValueError, match="1 chats need as many samplings, got 0"):
        backend.generate([chat("a")], [])
    with pytest.raises(ValueError, match="ends with nothing"):
        backend.generate([[]], [GREEDY])
    with pytest.raises(ValueError, match="ends with system"):
        backend.generate([chat("a")[:1]], [GREEDY])


# --- retries -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        Reply(refusal("slow down"), 429),
        Reply(refusal("slow down"), 429, {"Retry-After": "nonsense"}),
        Reply(refusal("slow down"), 429, {"Retry-After": "-3"}),
        Reply(refusal("slow down"), 429, {"Retry-After": "nan"}),
        Reply(refusal("slow down"), 429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        Reply(refusal("oops"), 500),
        Reply(b"<html>", 502),
        Reply(None, 503),
        Reply(None, 408),
        Reply(completion("late"), delay=1.0),
        Reply(drop=True),
    ],
)
def test_passing_trouble_passes(server: Server, connect: Connect, trouble: Reply) -> None:
    server.script(trouble, trouble, Reply(completion("fine")))
    backend = connect(timeout=0.4 if trouble.delay else 60.0)
    assert ask(backend) == Completion("fine", "stop")
    assert len(server.chats) == 3


def test_retry_after_is_honoured(server: Server, connect: Connect) -> None:
    server.script(
        Reply(refusal("slow down"), 429, {"Retry-After": "0.3"}), Reply(completion("fine"))
    )
    started = time.monotonic()
    assert ask(connect()) == Completion("fine", "stop")
    assert 0.3 <= time.monotonic() - started < 10


def test_a_server_that_asks_for_an_hour_is_not_waited_for(server: Server, connect: Connect) -> None:
    server.script(Reply(refusal("quota"), 429, {"Retry-After": "3600"}))
    message = failure(connect())
    assert "asked to wait 3600" in message
    assert len(server.chats) == 1


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize(
    ("trouble", "expected"),
    [(Reply(refusal("oops"), 500), 'status 500, \'{"error"'), (Reply(None, 429), "status 429")],
)
def test_retries_are_bounded(
    server: Server, connect: Connect, trouble: Reply, expected: str, retries: int
) -> None:
    server.script(trouble)
    message = failure(connect(retries=retries))
    assert len(server.chats) == retries + 1
    assert expected in message
    assert f"tried {retries + 1} times" in message
    assert server.url in message


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 422])
def test_refusals_are_not_retried(server: Server, connect: Connect, status: int) -> None:
    server.script(Reply(refusal("no such thing"), status, {"Location": "/elsewhere"}))
    message = failure(connect())
    assert len(server.chats) == 1
    assert str(status) in message
    assert "no such thing" in message


def test_a_hanging_server_times_out(server: Server, connect: Connect) -> None:
    server.script(Reply(completion(), delay=20.0))
    started = time.monotonic()
    message = failure(connect(timeout=0.1, retries=1))
    assert time.monotonic() - started < 10
    assert "timeout=0.1" in message
    assert "tried 2 times" in message


def test_a_chat_that_breaks_the_server_leaves_the_others_alone(
    server: Server, connect: Connect
) -> None:
    server.answer = lambda r: Reply(None, 500) if r.text == "b" else echo(r)
    a, b, c = connect(concurrency=1).generate([chat("a"), chat("b"), chat("c")], [GREEDY] * 3)
    assert (a, c) == (Completion("<a>", "stop"), Completion("<c>", "stop"))
    assert isinstance(b, BackendError)


def test_the_pauses_grow_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_PAUSE", 0.5)
    monkeypatch.setattr(transport, "LONGEST_PAUSE", 8.0)
    for attempt, longest in enumerate([0.5, 1, 2, 4, 8, 8, 8], start=1):
        pauses = [transport._pause(attempt) for _ in range(50)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest
    assert transport._pause(100_000) <= 8


# --- dead servers --------------------------------------------------------------------------------


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_no_server_is_one_clear_error() -> None:
    url = f"http://127.0.0.1:{unused_port()}/v1"
    with pytest.raises(BackendError) as caught:
        OpenAIBackend(url)
    assert type(caught.value) is BackendError
    message = str(caught.value)
    assert url in message
    assert "Connect call failed" in message
    assert "tried 5 times" in message
    assert "Start it" in message


@pytest.mark.parametrize("trouble", [Reply(drop=True), Reply(None, 503)])
def test_a_server_that_dies_fails_the_batch_once(
    server: Server, connect: Connect, trouble: Reply
) -> None:
    backend = connect(concurrency=4)
    server.script(trouble)
    with pytest.raises(BackendError, match=r"no server answers at .*tried 5 times"):
        backend.generate([chat(str(i)) for i in range(200)], [GREEDY] * 200)
    assert len(server.chats) <= 4 * 5
    server.answer = echo
    assert ask(backend) == Completion("<look>", "stop"), "back again"


def test_a_server_that_dies_within_a_batch_keeps_what_was_answered(
    server: Server, connect: Connect
) -> None:
    server.answer = lambda r: echo(r) if r.text in "01" else Reply(drop=True)
    results = connect(concurrency=1).generate([chat(str(i)) for i in range(9)], [GREEDY] * 9)
    assert results[:2] == [Completion("<0>", "stop"), Completion("<1>", "stop")]
    assert all(isinstance(result, BackendError) for result in results[2:])
    assert len(server.chats) == 2 + 5


# --- context -------------------------------------------------------------------------------------

VLLM_NOW = (
    "This model's maximum context length is 100 tokens. However, you requested 512 output tokens "
    "and your prompt contains at least 1 input tokens, for a total of at least 101 tokens. Please "
    "reduce the length of the input prompt or the number of requested output tokens."
)
VLLM_BEFORE = (
    "'max_tokens' or 'max_completion_tokens' is too large: 8000. This model's maximum context "
    "length is 4096 tokens and your request has 2778 input tokens (8000 > 4096 - 2778)."
)
DECODER = (
    "The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure "
    "that `max_model_len` is no smaller than the number of text tokens."
)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, refusal(VLLM_NOW, type="BadRequestError", param="input_tokens", code=400)),
        (400, refusal(VLLM_BEFORE, type="BadRequestError", param=None, code=400)),
        (400, {"object": "error", "message": DECODER, "type": "BadRequestError", "code": 400}),
        (400, refusal("Too long.", type="invalid_request_error", code="context_length_exceeded")),
        (400, refusal("The input (50 tokens) is longer than the model's context length (40).")),
        (500, refusal("too long", type="exceed_context_size_error", n_ctx=256, code=500)),
        (400, {"detail": "Requested tokens (85) exceed context window of 64"}),
        (400, {"error": "prompt is too long: 300 tokens > 200 maximum"}),
    ],
)
def test_a_full_context_is_told_apart(
    server: Server, connect: Connect, status: int, body: Any
) -> None:
    server.answer = lambda r: Reply(body, status) if r.text == "b" else echo(r)
    a, b = connect().generate([chat("a"), chat("b")], [GREEDY] * 2)
    assert a == Completion("<a>", "stop")
    assert isinstance(b, ContextOverflow)
    assert "End the episode earlier" in str(b)
    assert len(server.chats) == 2


@pytest.mark.parametrize(
    "body",
    [
        refusal("temperature must be non-negative", code=400),
        b"context length",
        {"detail": [{"msg": "field required", "input": {"content": "a text"}}]},
        [],
    ],
)
def test_other_refusals_are_no_overflow(server: Server, connect: Connect, body: Any) -> None:
    server.script(Reply(body, 400))
    assert "400" in failure(connect())


def full_context(prompt_tokens: int, limit: int) -> Callable[[Request], Reply]:
    def answer(request: Request) -> Reply:
        if prompt_tokens + request.body["max_tokens"] > limit:
            return Reply(refusal(VLLM_NOW), 400)
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 1}
        return Reply(completion(str(request.body["max_tokens"]), usage=usage))

    return answer


def test_the_last_tokens_of_the_context_are_used(server: Server, connect: Connect) -> None:
    """As in the Hugging Face backend, what counts is whether the prompt fits."""
    server.models = {"data": [VLLM_CARD]}
    backend = connect()
    assert backend.max_context == 100
    for prompt, granted in ((50, 50), (90, 10), (99, 1)):
        server.answer = full_context(prompt, 100)
        assert ask(backend) == Completion(str(granted), "stop", (), prompt)
    server.answer = full_context(100, 100)
    assert isinstance(ask(backend), ContextOverflow)


def test_a_context_of_ones_own_is_kept(server: Server, connect: Connect) -> None:
    server.models = {"data": [VLLM_CARD]}
    server.script(Reply(completion("x", usage={"prompt_tokens": 60})))
    assert isinstance(ask(connect(max_context=61)), Completion)
    overflow = ask(connect(max_context=60))
    assert isinstance(overflow, ContextOverflow)
    assert "takes 60 tokens" in str(overflow)
    with pytest.raises(ValueError, match=r"max_context=101, .* at most 100"):
        connect(max_context=101)


# --- which model ---------------------------------------------------------------------------------


def test_the_only_model_is_taken(server: Server, connect: Connect) -> None:
    backend = connect()
    assert backend.served_model == "m"
    assert backend.name == f"m at {server.url}"
    assert backend.max_context is None


def test_several_models_need_a_choice(server: Server, connect: Connect) -> None:
    server.models = {"data": [{"id": "a"}, {"id": "b", "max_model_len": 8}]}
    with pytest.raises(BackendError, match=r"2 models \('a', 'b'\).* served_model"):
        connect()
    assert connect(served_model="b").max_context == 8
    adapter = connect(served_model="unlisted")
    assert (adapter.served_model, adapter.max_context) == ("unlisted", None)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply({"data": []}), "0 models"),
        (Reply(b"<html>"), "expected a list of models"),
        (Reply({"object": "list"}), "expected a list of models"),
        (Reply(None, 404), "expected a URL that ends with the version"),
        (Reply(None, 500), "did not answer a request: status 500"),
    ],
)
def test_a_server_without_a_list_needs_a_name(
    server: Server, connect: Connect, reply: Reply, expected: str
) -> None:
    server.list_models = lambda _: reply
    with pytest.raises(BackendError, match=expected):
        connect()
    assert ask(connect(served_model="x")) == Completion("<look>", "stop")
    assert server.chats[0].body["model"] == "x"


def test_a_wrong_model_is_told(server: Server, connect: Connect) -> None:
    server.script(Reply(refusal("The model `x` does not exist.", code=404), 404))
    message = failure(connect(served_model="x"))
    assert "The model `x` does not exist." in message
    assert f"{server.url}/models lists" in message


# --- the key -------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(connect())
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    ask(connect())
    sent = [request.headers.get("Authorization") for request in server.chats]
    assert sent == [None, f"Bearer {KEY}"]
    assert server.listings[1].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(refusal(f"Incorrect API key provided: {KEY}."), 401),
        Reply(refusal(f"no {KEY}"), 400),
        Reply(refusal(f"no {KEY}"), 500),
        Reply(("x" * 190 + KEY).encode()),
        Reply(completion("x", finish=KEY)),
        Reply(b"no gzip", headers={"Content-Encoding": "gzip"}),
        Reply(drop=True),
    ],
)
def test_the_key_is_never_told(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch, reply: Reply
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    backend = connect(retries=1)
    server.answer = lambda r: reply if r.text == "look" else echo(r)
    _, error = backend.generate([chat("other"), chat("look")], [GREEDY] * 2)
    assert isinstance(error, BackendError)
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(backend) + backend.name
    assert KEY not in shown
    assert KEY[:9] not in shown


def test_a_missing_key_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.list_models = lambda _: Reply(refusal("Unauthorized"), 401)
    with pytest.raises(BackendError, match="OPENAI_API_KEY is not set"):
        OpenAIBackend(server.url, served_model="m")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(BackendError, match="OPENAI_API_KEY is set, but not accepted"):
        OpenAIBackend(server.url)
    assert len(server.listings) == 2


def test_a_key_that_no_header_can_carry(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a\nb")
    with pytest.raises(BackendError, match="OPENAI_API_KEY holds characters") as caught:
        OpenAIBackend(server.url)
    assert "sk-a" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://me:pw@h/v1", "http://me@h/v1", "http://h/v1?key=pw"])
def test_secrets_in_the_url_are_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(ValueError, match="OPENAI_API_KEY") as caught:
        OpenAIBackend(url)
    assert "pw" not in str(caught.value)


# --- life ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", "h/v1", "ftp://h/v1", "http://", "http://h:0/v1", "http://h:99999", "http://[::1"]
)
def test_bad_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|[Pp]ort"):
        OpenAIBackend(url)


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"retries": -1},
        {"timeout": 0},
        {"timeout": float("inf")},
        {"timeout": float("nan")},
        {"max_context": 0},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        OpenAIBackend("http://127.0.0.1:1/v1", **options)


def test_httpx_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"gym-llmworld\[openai\]"):
        OpenAIBackend("http://127.0.0.1:1/v1")


def client_threads() -> int:
    return sum(thread.name == "llmworld-openai" for thread in threading.enumerate())


def test_close_is_final_and_idempotent(connect: Connect) -> None:
    backend = connect()
    assert client_threads() == 1
    backend.close()
    backend.close()
    assert client_threads() == 0
    with pytest.raises(BackendError, match="is closed"):
        ask(backend)


def test_failed_construction_leaves_no_thread(server: Server) -> None:
    server.models = {"data": []}
    with pytest.raises(BackendError):
        OpenAIBackend(server.url)
    assert client_threads() == 0


def test_close_frees_who_waits(server: Server, connect: Connect) -> None:
    server.script(Reply(completion(), delay=20.0))
    backend = connect(concurrency=1)
    errors: list[BackendError] = []

    def wait() -> None:
        try:
            backend.generate([chat("a"), chat("b")], [GREEDY] * 2)
        except BackendError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not server.chats:
        time.sleep(0.005)
    started = time.monotonic()
    backend.close()
    thread.join()
    assert time.monotonic() - started < 10
    assert "closed while it waited" in str(errors[0])
    assert len(server.chats) == 1


def test_a_copy_is_the_same_client(connect: Connect) -> None:
    backend = connect()
    assert copy.deepcopy(backend) is backend


def test_the_callers_random_numbers_are_left_alone(server: Server, connect: Connect) -> None:
    import random

    server.script(Reply(None, 429), Reply(completion("fine")))
    random.seed(1)
    before = random.getstate()
    ask(connect())
    assert random.getstate() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_connects_anew(server: Server, connect: Connect) -> None:
    backend = connect()
    ask(backend, "parent")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads, Python 3.12
        child = os.fork()
    if child == 0:
        try:
            code = 0 if ask(backend, "child") == Completion("<child>", "stop") else 1
            backend.close()
        except BaseException:
            traceback.print_exc()
            code = 2
        os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert ask(backend, "parent again") == Completion("<parent again>", "stop")
    parent, by_child, again = (request.peer for request in server.chats)
    assert parent == again != by_child


# --- a real server -------------------------------------------------------------------------------


@pytest.fixture
def real_server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """`transformers serve` on loopback with a random model."""
    for package in ("fastapi", "uvicorn", "openai", "pydantic"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"transformers serve needs {package}: pip install 'transformers[serving]'")
    from tests.tiny_models import save_checkpoint

    folder = save_checkpoint(tmp_path / "model")
    (tmp_path / "hub").mkdir()
    stop = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    ends = [token["id"] for token in stop if token["content"] == "<|im_end|>"]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    port = unused_port()
    start = "from transformers.cli.transformers import main; main()"
    serve = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", start, *serve],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield f"http://127.0.0.1:{port}/v1", folder
        finally:
            process.terminate()
            process.wait(timeout=30)


@pytest.mark.slow
def test_a_real_server_writes_what_the_local_backend_writes(
    real_server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gym_llmworld.backends.hf import HFBackend

    url, folder = real_server
    monkeypatch.setattr(transport, "FIRST_PAUSE", 1.0)
    monkeypatch.setattr(transport, "LONGEST_PAUSE", 1.0)
    # A refused connection is retried: the client waits for the server to come up.
    backend = OpenAIBackend(url, served_model=str(folder), concurrency=2, retries=150)
    local = HFBackend(str(folder))
    try:
        chats = [
            [
                Message("system", "You are in the middle of a room."),
                Message("user", "look"),
                Message("assistant", "You see a cabinet 1."),
                Message("user", action),
            ]
            for action in ("open cabinet 1", "inventory", "go to drawer 3", "heat plate 1")
        ]
        samplings = [Sampling(max_tokens=n) for n in (24, 24, 5, 24)]
        remote, here = backend.generate(chats, samplings), local.generate(chats, samplings)
        assert [c.text for c in remote if isinstance(c, Completion)] == [
            c.text for c in here if isinstance(c, Completion)
        ]
        assert [c.prompt_tokens for c in remote if isinstance(c, Completion)] == [
            c.prompt_tokens for c in here if isinstance(c, Completion)
        ]
        assert len([c for c in remote if isinstance(c, Completion)]) == len(chats)
        assert isinstance(remote[2], Completion)
        assert remote[2].finish_reason == "length"
    finally:
        backend.close()
        local.close()
