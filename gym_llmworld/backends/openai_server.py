"""A client of any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, OpenAI.

The calling thread waits while one background thread sends the requests of a batch side by side
over a few kept connections. The server keeps the key/value prefixes (vLLM and SGLang do so by
default), so that a whole history in every request costs bandwidth and hashing, not computation.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib.util
import ipaddress
import itertools
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from gym_llmworld.backends.base import BackendStats
from gym_llmworld.core import Completion, Message, Sampling
from gym_llmworld.errors import BackendError, ContextOverflow, MissingDependency

if TYPE_CHECKING:
    import httpx

KEY_VARIABLE = "OPENAI_API_KEY"
FIRST_PAUSE = 0.5
"""Seconds before the first retry; doubled for each further one."""
LONGEST_PAUSE = 8.0
LONGEST_RETRY_AFTER = 60.0
"""A server that asks for more seconds of patience than this is not asked again."""

_T = TypeVar("_T")
_EXCERPT = 200
_CONNECT_SECONDS = 10.0
_REQUEST_TIMEOUT, _TOO_MANY = 408, 429
_GATEWAY = (502, 503, 504)
_OVERFLOW_CODES = ("context_length_exceeded", "exceed_context_size_error")
# vLLM, OpenAI, SGLang and llama.cpp word it differently, and vLLM has changed its words.
_OVERFLOW = re.compile(
    r"context (length|size|window)|maximum (model|context|prompt) length|max_model_len"
    r"|prompt is too long|reduce the length of the (messages|prompt|input)",
    re.IGNORECASE,
)
# These apply the sampling defaults of the checkpoint's generation_config.json (for Qwen2.5 a
# repetition penalty and a top-k) to requests that do not say otherwise.
_CHECKPOINT_DEFAULTS = ("vllm", "sglang")
_NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
# Not the module's generator: a retry must not move the random numbers of the caller's program.
_jitter = random.SystemRandom()


class OpenAIBackend:
    """Completes chats by asking a server.

    Greedy requests carry no seed, sampled ones do; whether a seed repeats an answer is up to the
    server (vLLM: yes on one version and hardware, unless batches change its rounding). Where the
    server gives log-probabilities (vLLM: of the untempered model, its default) they are passed on.

    The key is read from ``OPENAI_API_KEY``, and sent to whatever server ``url`` names.

    Args:
        url: Up to and including the version, ``"http://127.0.0.1:8000/v1"``.
        served_model: Name of the model there; None for the only one that the server lists.
        concurrency: Requests under way at a time, for all threads together.
        timeout: Seconds for one attempt, from sending the request to the answer's last byte.
        retries: Further attempts after a lost connection, a time-out, status 408, 429 or 5xx. They
            are spaced by what the server asks for (``Retry-After``), or by growing random pauses.
        max_context: Longest conversation in tokens; None for what the server tells, if it does.

    Attributes:
        name: The model and its server.
        url: Of the server, without a trailing slash.
        served_model: Name of the model there.
        max_context: Longest conversation in tokens, or None when unknown.

    Raises:
        MissingDependency: ``httpx`` is not installed.
        ValueError: An option is out of range.
        BackendError: The server cannot be reached, refuses the key, or serves other models.
    """

    def __init__(
        self,
        url: str,
        *,
        served_model: str | None = None,
        concurrency: int = 32,
        timeout: float = 60.0,
        retries: int = 4,
        max_context: int | None = None,
    ) -> None:
        if importlib.util.find_spec("httpx") is None:
            raise MissingDependency("httpx", "openai")
        self.url = _checked_url(url)
        _check_options(concurrency, timeout, retries, max_context)
        self._concurrency, self._timeout, self._retries = concurrency, timeout, retries
        self._key = _key()
        self._closed = False
        self._logprobs = True
        self._stats = BackendStats()
        self._lines: dict[int, _Line] = {}
        try:
            card = self._run(lambda line: self._find_model(line, served_model))
        except _Unreachable as error:
            self.close()
            raise BackendError(str(error)) from None
        except BaseException:
            self.close()
            raise
        self.served_model = card.id
        self.name = f"{card.id} at {self.url}"
        self.max_context: int | None = max_context or card.max_context
        self._extra = _NEUTRAL if card.checkpoint_defaults else {}
        if max_context and card.max_context and max_context > card.max_context:
            self.close()
            raise ValueError(
                f"max_context={max_context}, but {self.name} takes at most {card.max_context}"
            )

    @property
    def stats(self) -> BackendStats:
        """What was done since loading, as far as the server tells."""
        return self._stats

    def generate(
        self, chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]
    ) -> list[Completion | BackendError]:
        """Completes each chat.

        A chat that fills the context has a `ContextOverflow` in its place; one that the server
        refuses, or answers with something else than a finished or cut-off text, a `BackendError`.
        When the server has become unreachable, chats that were not sent yet are not sent any more.

        Raises:
            ValueError: Not one sampling per chat, or a chat that does not end with a user message.
            BackendError: The backend is closed, or the server could not be reached for any chat.
        """
        _check_batch(chats, samplings)
        if not chats:
            return []
        results = self._run(lambda line: self._generate(line, chats, samplings))
        if all(isinstance(result, _Unreachable) for result in results):
            raise BackendError(str(results[0]))
        return results

    def close(self) -> None:
        """Ends the connections and what is under way on them; calling it twice is fine."""
        self._closed = True
        line = self._lines.get(os.getpid())
        if line is not None:
            line.close()

    def __deepcopy__(self, memo: dict[int, object]) -> OpenAIBackend:
        """A backend is shared, never copied."""
        return self

    def _run(self, work: Callable[[_Line], Coroutine[Any, Any, _T]]) -> _T:
        if self._closed:
            raise BackendError(f"the client of {self.url} is closed")
        # A forked child owns neither its parent's thread nor, alone, its sockets.
        pid = os.getpid()
        line = self._lines.get(pid) or self._lines.setdefault(pid, _Line(self._make_clients))
        try:
            return line.run(work)
        except concurrent.futures.CancelledError:
            raise BackendError(f"the client of {self.url} was closed while it waited") from None

    def _make_clients(self) -> list[httpx.AsyncClient]:
        """Makes one client per request that may be under way.

        A pool of connections looks through all of them for every request: of one client with 32
        connections a request takes three times the processor time that it takes here.
        """
        import httpx

        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        # A proxy for the outside world cannot reach a server of this machine.
        trust_env = not _is_loopback(self.url)
        context = httpx.create_ssl_context(trust_env=trust_env)
        timeout = httpx.Timeout(None, connect=min(self._timeout, _CONNECT_SECONDS))
        try:
            return [
                httpx.AsyncClient(
                    base_url=f"{self.url}/",
                    headers=headers,
                    timeout=timeout,
                    trust_env=trust_env,
                    verify=context,
                )
                for _ in range(self._concurrency)
            ]
        except httpx.InvalidURL as error:
            raise ValueError(f"{self.url!r} is not a URL: {error}") from error

    async def _find_model(self, line: _Line, wanted: str | None) -> _Card:
        try:
            async with line.client() as client:
                response = await self._exchange(client, "GET", "models")
        except BackendError as error:
            if wanted is None or isinstance(error, _Unreachable):
                raise
            return _Card(wanted)
        if response.status_code in (401, 403) or (wanted is None and not response.is_success):
            self._refuse(response)
        cards = _cards(response.content) if response.is_success else []
        if wanted is not None:
            # Adapters and aliases may be served without being listed.
            return next((card for card in cards or () if card.id == wanted), _Card(wanted))
        if cards is None:
            self._reject("a list of models {'data': [{'id': ...}]}", response.content)
        if len(cards) != 1:
            listed = ", ".join(repr(card.id) for card in cards[:20]) or "none"
            raise BackendError(
                f"{self.url} lists {len(cards)} models ({self._clean(listed)}): say which one "
                "with served_model"
            )
        return cards[0]

    async def _generate(
        self, line: _Line, chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]
    ) -> list[Completion | BackendError]:
        unreachable: list[_Unreachable] = []

        async def answer(chat: Sequence[Message], sampling: Sampling) -> Completion | BackendError:
            async with line.client() as client:
                if unreachable:
                    return unreachable[0]
                try:
                    return await self._complete(client, chat, sampling)
                except _Unreachable as error:
                    unreachable.append(error)
                    return error.with_traceback(None)
                except BackendError as error:
                    return error.with_traceback(None)

        results = await asyncio.gather(*map(answer, chats, samplings))
        self._count(calls=1, requests=len(chats))
        return results

    async def _complete(
        self, client: httpx.AsyncClient, chat: Sequence[Message], sampling: Sampling
    ) -> Completion:
        try:
            return await self._ask(client, chat, sampling, sampling.max_tokens)
        except ContextOverflow:
            if self.max_context is None or sampling.max_tokens == 1:
                raise
            # Servers refuse a prompt after which the longest answer would not fit. What counts is
            # the prompt alone; its size comes with an answer of one token.
            first = await self._ask(client, chat, sampling, 1)
            room = self.max_context - first.prompt_tokens
            if not first.prompt_tokens or not 0 < room < sampling.max_tokens:
                raise
        return await self._ask(client, chat, sampling, room)

    async def _ask(
        self,
        client: httpx.AsyncClient,
        chat: Sequence[Message],
        sampling: Sampling,
        max_tokens: int,
    ) -> Completion:
        payload: dict[str, Any] = {
            "model": self.served_model,
            "messages": [{"role": message.role, "content": message.content} for message in chat],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": max_tokens,
            **self._extra,
        }
        if sampling.temperature > 0:
            payload["seed"] = sampling.seed
        asked = self._logprobs
        response = await self._exchange(
            client, "POST", "chat/completions", payload | ({"logprobs": True} if asked else {})
        )
        if asked and response.status_code in (400, 422) and "logprobs" in response.text:
            response = await self._exchange(client, "POST", "chat/completions", payload)
            # Other refusals may quote the request; only an answer shows that this was the reason.
            if response.is_success:
                self._logprobs = False
        if not response.is_success:
            self._refuse(response)
        return self._read(response.content)

    async def _exchange(
        self,
        client: httpx.AsyncClient,
        method: str,
        path: str,
        payload: dict[str, Any] | None = None,
    ) -> httpx.Response:
        """Sends a request until there is an answer that another attempt would not change."""
        import httpx

        # ASCII escapes carry any string, lone surrogates included.
        body = None if payload is None else json.dumps(payload).encode("ascii")
        started = time.monotonic()
        for attempt in itertools.count(1):
            gone, pause = True, None
            try:
                async with asyncio.timeout(self._timeout):
                    response = await client.request(method, path, content=body)
            except TimeoutError:
                gone, what = False, f"no complete answer within timeout={self._timeout:g} seconds"
            except httpx.TransportError as error:
                what = _root(error)
            except httpx.DecodingError as error:
                raise BackendError(
                    f"{self.url} answered with a broken encoding: {self._clean(str(error))}"
                ) from None
            else:
                status = response.status_code
                if not _worth_retrying(status) or _overflows(response.content):
                    return response
                gone, pause = status in _GATEWAY, _retry_after(response)
                what = f"status {status}, {self._excerpt(response.content)}"
            impatient = pause is not None and pause > LONGEST_RETRY_AFTER
            if attempt > self._retries or impatient:
                what = f"{what}; tried {attempt} times in {time.monotonic() - started:.1f} seconds"
                if impatient:
                    what += f", and asked to wait {pause:.0f} more"
                self._give_up(self._clean(what), gone)
            await asyncio.sleep(_pause(attempt) if pause is None else _spread(pause))
        raise AssertionError("unreachable")

    def _give_up(self, what: str, gone: bool) -> NoReturn:
        if gone:
            raise _Unreachable(
                f"no server answers at {self.url}: {what}. Start it (for a checkpoint: vllm serve "
                "FOLDER), wait until it has loaded, or correct the URL"
            )
        raise BackendError(
            f"{self.url} did not answer a request: {what}. Look into the server's log; where it is "
            "only slow or busy, lower concurrency or raise timeout or retries"
        )

    def _refuse(self, response: httpx.Response) -> NoReturn:
        """Raises what a status that is not retried means."""
        status = response.status_code
        told = f"{self.url} answered with status {status}, {self._excerpt(response.content)}"
        if _overflows(response.content):
            raise ContextOverflow(
                f"{told}: the conversation does not fit the server's context. End the episode "
                "earlier, or serve the model with a longer one"
            )
        if status in (401, 403):
            state = "is set, but not accepted" if self._key else "is not set"
            raise BackendError(f"{told}: the environment variable {KEY_VARIABLE} {state}")
        if status == 404:
            raise BackendError(
                f"{told}: expected a URL that ends with the version (http://host:8000/v1), and a "
                f"served_model that {self.url}/models lists"
            )
        raise BackendError(told)

    def _reject(self, expected: str, content: bytes) -> NoReturn:
        raise BackendError(f"{self.url}: expected {expected}, got {self._excerpt(content)}")

    def _read(self, content: bytes) -> Completion:
        """Reads a chat completion."""
        body = _json(content)
        match body:
            case {"choices": [{"finish_reason": reason} as choice, *_]}:
                pass
            case _:
                self._reject("a chat completion with choices[0].finish_reason", content)
        if reason not in ("stop", "length"):
            came = self._clean(str(reason))[:50]
            self._reject(f"finish_reason 'stop' or 'length' instead of {came!r}", content)
        match choice:
            case {"message": {"content": str(text)}} if _is_unicode(text):
                pass
            case _:
                self._reject("a text in choices[0].message.content", content)
        logprobs = _logprobs(choice)
        prompt, cached, written = _usage(body)
        self._count(
            prompt_tokens=prompt, cached_tokens=cached, generated_tokens=written or len(logprobs)
        )
        if self.max_context is not None and prompt >= self.max_context:
            raise ContextOverflow(
                f"the conversation takes {prompt} tokens and {self.name} is limited to "
                f"{self.max_context}, the answer included; end the episode earlier, or raise "
                "max_context if the server can take more"
            )
        return Completion(text, reason, logprobs, prompt, cached)

    def _count(self, **more: int) -> None:
        """Adds to the stats; only called on the background thread, hence without a lock."""
        stats = self._stats
        self._stats = replace(stats, **{key: getattr(stats, key) + n for key, n in more.items()})

    def _excerpt(self, content: bytes) -> str:
        text = self._clean(content.decode("utf-8", "replace"))
        return repr(text[:_EXCERPT]) if text else "without a body"

    def _clean(self, text: str) -> str:
        """Removes the key, which servers like to quote."""
        return text.replace(self._key, "***") if self._key else text


class _Unreachable(BackendError):
    """The server, rather than its answer to one chat, is missing."""


@dataclass(frozen=True, slots=True)
class _Card:
    """What a server says about a model.

    Attributes:
        id: Its name there.
        max_context: In tokens.
        checkpoint_defaults: Whether requests inherit the checkpoint's sampling defaults.
    """

    id: str
    max_context: int | None = None
    checkpoint_defaults: bool = False


class _Line:
    """A thread with an event loop, and the clients that live there, of one process.

    Args:
        make_clients: Called once; opens nothing yet.
    """

    def __init__(self, make_clients: Callable[[], list[httpx.AsyncClient]]) -> None:
        self._make_clients = make_clients
        self._lock = threading.Lock()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = asyncio.Event()
        # The one used last comes first: few worlds keep few connections.
        self._idle: asyncio.LifoQueue[httpx.AsyncClient] = asyncio.LifoQueue()

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Lends a client, waiting for one to come back if need be."""
        client = await self._idle.get()
        try:
            yield client
        finally:
            self._idle.put_nowait(client)

    def run(self, work: Callable[[_Line], Coroutine[Any, Any, _T]]) -> _T:
        """Runs a coroutine on the thread and waits for it; gives it up when interrupted.

        Raises:
            CancelledError: The line is closed.
        """
        with self._lock:
            if self._closed:
                raise concurrent.futures.CancelledError
            if self._loop is None:
                self._loop = self._start()
            future = asyncio.run_coroutine_threadsafe(work(self), self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def close(self) -> None:
        """Cancels what runs, closes the connections and waits for the thread to end."""
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _start(self) -> asyncio.AbstractEventLoop:
        clients = self._make_clients()
        for client in clients:
            self._idle.put_nowait(client)
        ready: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(clients, ready)),
            name="llmworld-openai",
            daemon=True,
        )
        self._thread.start()
        return ready.result()

    async def _serve(
        self,
        clients: Sequence[httpx.AsyncClient],
        ready: concurrent.futures.Future[asyncio.AbstractEventLoop],
    ) -> None:
        ready.set_result(asyncio.get_running_loop())
        await self._stop.wait()
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for client in clients:
            await client.aclose()


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # Not quoted: what is in it may be a secret.
        raise ValueError(
            "the URL of a server must hold neither a user, a password, a query nor a fragment; a "
            f"key belongs into the environment variable {KEY_VARIABLE}"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError(f"expected a URL like http://127.0.0.1:8000/v1, got {url!r}")
    return url.rstrip("/")


def _check_options(concurrency: int, timeout: float, retries: int, max_context: int | None) -> None:
    lowest = {"concurrency": (concurrency, 1), "retries": (retries, 0)}
    if max_context is not None:
        lowest["max_context"] = (max_context, 1)
    for name, (value, least) in lowest.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout}")


def _check_batch(chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]) -> None:
    if len(chats) != len(samplings):
        raise ValueError(f"{len(chats)} chats need as many samplings, got {len(samplings)}")
    for chat in chats:
        if not chat or chat[-1].role != "user":
            last = chat[-1].role if chat else "nothing"
            raise ValueError(f"a chat must end with a user message, this one ends with {last}")


def _key() -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise BackendError(
            f"the environment variable {KEY_VARIABLE} holds characters that no key has (a line "
            "break, say)"
        )
    return key


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _worth_retrying(status: int) -> bool:
    return status in (_REQUEST_TIMEOUT, _TOO_MANY) or status >= 500


def _retry_after(response: httpx.Response) -> float | None:
    """Returns the seconds that a server asks for: a number or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _pause(attempt: int) -> float:
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempt - 1, 30)) * _jitter.uniform(0.5, 1.0)


def _spread(pause: float) -> float:
    """Keeps all who were told to wait equally long from coming back at one moment."""
    return pause + _jitter.uniform(0.0, FIRST_PAUSE)


def _root(error: BaseException) -> str:
    """Words a lost connection by the operating system's reason for it, where there is one."""
    words = str(error) or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and str(cause):
            words = str(cause)
        cause = cause.__cause__ or cause.__context__
    return words


def _json(content: bytes) -> Any:
    """Returns the parsed JSON, None where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _overflows(content: bytes) -> bool:
    """Whether the body of a refusal says that the context is too short."""
    match _json(content):
        case {"error": {"message": message, **details}}:
            pass
        case {"message": message, **details} | {"detail": message, **details}:
            pass
        case {"error": message, **details}:
            pass
        case _:
            return False
    coded = details.get("code") in _OVERFLOW_CODES or details.get("type") in _OVERFLOW_CODES
    return coded or _OVERFLOW.search(str(message)) is not None


def _cards(content: bytes) -> list[_Card] | None:
    match _json(content):
        case {"data": list(entries)}:
            return [
                _Card(
                    entry["id"],
                    _natural(entry.get("max_model_len")) or None,
                    entry.get("owned_by") in _CHECKPOINT_DEFAULTS,
                )
                for entry in entries
                if isinstance(entry, dict) and isinstance(entry.get("id"), str)
            ]
    return None


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; JSON can spell half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _natural(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


def _usage(body: dict[str, Any]) -> tuple[int, int, int]:
    """Returns the tokens of the prompt, those of them that were cached, and those written."""
    match body:
        case {"usage": {**usage}}:
            pass
        case _:
            return 0, 0, 0
    match usage:
        case {"prompt_tokens_details": {"cached_tokens": cached}}:
            pass
        case _:
            cached = 0
    return (
        _natural(usage.get("prompt_tokens")),
        _natural(cached),
        _natural(usage.get("completion_tokens")),
    )


def _logprobs(choice: dict[str, Any]) -> tuple[float, ...]:
    """Returns a log-probability per token, or none at all where any is missing."""
    match choice:
        case {"logprobs": {"content": list(entries)}}:
            pass
        case _:
            return ()
    values = [entry.get("logprob") if isinstance(entry, dict) else None for entry in entries]
    known = tuple(float(v) for v in values if isinstance(v, int | float) and math.isfinite(v))
    return known if len(known) == len(values) else ()
