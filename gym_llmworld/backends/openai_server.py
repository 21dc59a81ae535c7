"""A client of any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, OpenAI.

The requests of a batch go side by side over a few kept connections
(`gym_llmworld.backends.openai_server_transport`). The server keeps the key/value prefixes (vLLM and
SGLang do so by default), so that a whole history in every request costs bandwidth and hashing, not
computation.
"""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gym_llmworld.backends.base import BackendStats, check_batch
from gym_llmworld.backends.openai_server_replies import KEY_VARIABLE, Card, Reader
from gym_llmworld.backends.openai_server_transport import Line, Transport, Unreachable
from gym_llmworld.core import Completion, Message, Sampling
from gym_llmworld.errors import BackendError, ContextOverflow, MissingDependency

if TYPE_CHECKING:
    import httpx

# For servers that otherwise apply the checkpoint's own sampling defaults.
_NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


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
        concurrency: int = 64,
        timeout: float = 60.0,
        retries: int = 4,
        max_context: int | None = None,
    ) -> None:
        if importlib.util.find_spec("httpx") is None:
            raise MissingDependency("httpx", "openai")
        self.url = _checked_url(url)
        _check_options(concurrency, timeout, retries, max_context)
        self._reader = Reader(self.url, _key())
        self._transport = Transport(
            self._reader, concurrency=concurrency, timeout=timeout, retries=retries
        )
        self._logprobs = True
        self._stats = BackendStats()
        try:
            card = self._transport.run(lambda line: self._find_model(line, served_model))
        except Unreachable as error:
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
        check_batch(chats, samplings, "samplings")
        if not chats:
            return []
        results = self._transport.run(lambda line: self._generate(line, chats, samplings))
        if all(isinstance(result, Unreachable) for result in results):
            raise BackendError(str(results[0]))
        return results

    def close(self) -> None:
        """Ends the connections and what is under way on them; calling it twice is fine."""
        self._transport.close()

    def __deepcopy__(self, memo: dict[int, object]) -> OpenAIBackend:
        """A backend is shared, never copied."""
        return self

    async def _find_model(self, line: Line, wanted: str | None) -> Card:
        try:
            async with line.client() as client:
                response = await self._transport.exchange(client, "GET", "models")
        except BackendError as error:
            if wanted is None or isinstance(error, Unreachable):
                raise
            return Card(wanted)
        if response.status_code in (401, 403) or (wanted is None and not response.is_success):
            raise self._reader.refusal(response)
        if wanted is not None:
            return self._listed(response, wanted)
        cards = self._reader.cards(response.content)
        if len(cards) != 1:
            listed = ", ".join(repr(card.id) for card in cards[:20]) or "none"
            raise BackendError(
                f"{self.url} lists {len(cards)} models ({self._reader.clean(listed)}): say which "
                "one with served_model"
            )
        return cards[0]

    def _listed(self, response: httpx.Response, wanted: str) -> Card:
        """Returns what is known of a model; adapters and aliases may be served without a card."""
        try:
            cards = self._reader.cards(response.content) if response.is_success else []
        except BackendError:
            cards = []
        return next((card for card in cards if card.id == wanted), Card(wanted))

    async def _generate(
        self, line: Line, chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]
    ) -> list[Completion | BackendError]:
        unreachable: list[Unreachable] = []

        async def answer(chat: Sequence[Message], sampling: Sampling) -> Completion | BackendError:
            async with line.client() as client:
                if unreachable:
                    return unreachable[0]
                try:
                    return await self._complete(client, chat, sampling)
                except Unreachable as error:
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
        response = await self._transport.exchange(
            client, "POST", "chat/completions", payload | ({"logprobs": True} if asked else {})
        )
        if asked and response.status_code in (400, 422) and "logprobs" in response.text:
            response = await self._transport.exchange(client, "POST", "chat/completions", payload)
            # Other refusals may quote the request; only an answer shows that this was the reason.
            if response.is_success:
                self._logprobs = False
        if not response.is_success:
            raise self._reader.refusal(response)
        return self._read(response.content)

    def _read(self, content: bytes) -> Completion:
        reply = self._reader.completion(content)
        prompt = reply.completion.prompt_tokens
        self._count(
            prompt_tokens=prompt,
            cached_tokens=reply.completion.cached_tokens,
            generated_tokens=reply.generated_tokens,
        )
        if self.max_context is not None and prompt >= self.max_context:
            raise ContextOverflow(
                f"the conversation takes {prompt} tokens and {self.name} is limited to "
                f"{self.max_context}, the answer included; end the episode earlier, or raise "
                "max_context if the server can take more"
            )
        return reply.completion

    def _count(self, **more: int) -> None:
        """Adds to the stats; only called on the background thread, hence without a lock."""
        stats = self._stats
        self._stats = replace(stats, **{key: getattr(stats, key) + n for key, n in more.items()})


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


def _key() -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise BackendError(
            f"the environment variable {KEY_VARIABLE} holds characters that no key has (a line "
            "break, say)"
        )
    return key
