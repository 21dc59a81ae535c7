"""Keys and values of many conversations, kept between requests.

Every conversation in the cache owns a *row* of slabs ``[rows, heads, capacity, head size]``, one
pair of slabs per layer. A forward pass sees the rows of its batch as a view, so nothing is gathered
or copied per token; what a conversation adds is written in place. Which tokens a row holds decides
what can be reused: reuse is found by comparing token ids, so the cache knows nothing of episodes,
forks or undone steps, and still serves all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache, CacheLayerMixin

from gym_llmworld.backends.hf_chat import Ids
from gym_llmworld.backends.hf_sampling import Draw

# Waiting for another request of the batch to compute a shared prefix pays from about here.
_WORTH_WAITING = 16


@dataclass(eq=False)
class Job:
    """One request on its way through the model.

    Attributes:
        ids: Tokens to feed.
        end: Longest that the conversation may get, generated tokens included.
        draw: How to choose tokens; None when a given text is scored.
        returning: The chat has an answer in it, so that a row may have been kept for it.
        targets: For scoring: the tokens that follow the last ``len(targets)`` positions of ``ids``.
        row: Its row in the cache.
        position: How many of its tokens have been fed.
        cached: How many of ``ids`` were found in the cache.
        tokens: Generated, without the end-of-turn token.
        logprobs: Of the generated tokens, or of ``targets``.
        greedy: Of ``targets``: each is the most probable token where it stands.
        finish: Why generation ended, None while it goes on.
    """

    ids: Ids
    end: int
    draw: Draw | None = None
    returning: bool = False
    targets: Sequence[int] = ()
    row: int = -1
    position: int = 0
    cached: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    greedy: bool = False
    finish: Literal["stop", "length"] | None = None

    @property
    def todo(self) -> int:
        """Number of tokens still to feed before the first new one."""
        return len(self.ids) - self.position

    @property
    def keep(self) -> int:
        """Number of final positions whose logits are needed."""
        return len(self.targets) or 1


class Window:
    """What the next forward pass sees and where it writes.

    Attributes:
        first: First row.
        last: One after the last row.
        length: Number of positions visible.
        writes: ``[rows, tokens]``, the position to which each new token goes.
    """

    def __init__(self) -> None:
        self.first = self.last = self.length = self.capacity = 0
        self.writes = torch.zeros(0, 0, dtype=torch.long)
        self._targets: dict[int, torch.Tensor] = {}

    def move(self, first: int, last: int, length: int, capacity: int, writes: torch.Tensor) -> None:
        """Sets what the next forward pass sees."""
        self.first, self.last, self.length, self.capacity = first, last, length, capacity
        self.writes = writes
        self._targets.clear()

    def targets(self, heads: int) -> torch.Tensor:
        """Returns the write index into a slab seen as ``[rows * heads * capacity, head size]``."""
        if heads not in self._targets:
            lanes = torch.arange(
                self.first * heads, self.last * heads, device=self.writes.device
            ).view(-1, heads, 1)
            self._targets[heads] = (lanes * self.capacity + self.writes[:, None]).flatten()
        return self._targets[heads]


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """The slabs of one layer, in the form that transformers' attention modules write to."""

    is_sliding = False
    is_croppable = True

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window
        self.rows = self.capacity = self.room = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocates the slabs. Zeros, because a masked NaN would still spoil a weighted sum."""
        self.keys = self._slab(key_states)
        self.values = self._slab(value_states)
        self.is_initialized = True

    def _slab(self, states: torch.Tensor) -> torch.Tensor:
        heads, size = states.shape[1], states.shape[3]
        if states.device.type != "cpu":
            return states.new_zeros(self.rows, heads, self.capacity, size)
        # NumPy's zeros are the operating system's: memory is taken when it is first written to.
        # torch would write all of it, which costs more than the keys and values that go there.
        number = torch.empty(0, dtype=states.dtype).element_size()
        zeros = np.zeros((self.room, heads, self.capacity, size * number), np.uint8)
        return torch.from_numpy(zeros).view(states.dtype)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes keys and values ``[rows, heads, tokens, size]``; returns all that is visible."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window = self.window
        visible = []
        for slab, states in ((self.keys, key_states), (self.values, value_states)):
            size = states.shape[3]
            slab.view(-1, size).index_copy_(
                0, window.targets(states.shape[1]), states.reshape(-1, size)
            )
            visible.append(slab[window.first : window.last, :, : window.length])
        return visible[0], visible[1]

    def resize(
        self, rows: int, capacity: int, room: int, kept: Sequence[int], lengths: Sequence[int]
    ) -> None:
        """Makes the slabs ``[rows, heads, capacity, size]``.

        Args:
            rows: Number of rows.
            capacity: Positions of each.
            room: Rows that there may be later; on a CPU they cost nothing until they are used.
            kept: Rows to keep, in this order.
            lengths: Positions in use of each of them.
        """
        stays = capacity == self.capacity and list(kept) == list(range(self.rows))
        self.rows, self.capacity = rows, capacity
        if not self.is_initialized:
            self.room = room
            return
        if stays and rows <= len(self.keys):
            return
        self.room = room
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = self._slab(old)
            for row, (source, length) in enumerate(zip(kept, lengths, strict=True)):
                new[row, :, :length] = old[source, :, :length]
            setattr(self, name, new)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first positions of a row."""
        for slab in (self.keys, self.values):
            slab[target, :, :length] = slab[source, :, :length]

    def swap(self, a: int, b: int, length: int) -> None:
        """Exchanges the first positions of two rows."""
        for slab in (self.keys, self.values):
            spare = slab[a, :, :length].clone()
            slab[a, :, :length] = slab[b, :, :length]
            slab[b, :, :length] = spare

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Only asked without a mask of our own: a lone prompt from its first token on."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Returns 0: positions are always passed explicitly."""
        return 0

    def get_max_length(self) -> int:
        """Returns the transformers value for "no maximum"; `Slots` keeps the limit."""
        return -1


class Slots:
    """Decides which row serves which conversation.

    Args:
        layers: Number of layers of the model.
        context: Longest conversation in tokens.
        max_rows: Most conversations kept.
        max_bytes: Most memory for keys and values.

    Attributes:
        cache: What the model's forward takes as ``past_key_values``.
        valid: Positions of each row whose keys and values are computed.
        evictions: Conversations that made room for others so far.
    """

    def __init__(self, layers: int, context: int, max_rows: int, max_bytes: int) -> None:
        self.window = Window()
        self.cache = Cache(layers=[SlotLayer(self.window) for _ in range(layers)])
        self.context, self.max_rows, self.max_bytes = context, max_rows, max_bytes
        self.rows = self.capacity = 0
        self.evictions = 0
        self._clock = 0
        self._reach = 0.0
        self._batch = 0
        self._owners: dict[int, Job] = {}
        self._allocate(0, 0)

    def _allocate(self, rows: int, capacity: int) -> None:
        # `held` counts what a row will hold once its owner has been fed; `valid` what it holds now;
        # `prompt` how long the last prompt was: whoever shares all of it continues this row.
        self.tokens: NDArray[np.int32] = np.zeros((rows, capacity), np.int32)
        self.held, self.valid, self.prompt, self.used = np.zeros((4, rows), np.int64)
        self.rows, self.capacity = rows, capacity

    @property
    def bytes_per_token(self) -> int:
        """Memory of one position in all layers; 0 before the first forward pass."""
        slabs = [s for layer in self.cache.layers for s in (layer.keys, layer.values)]
        return sum(s.shape[1] * s.shape[3] * s.element_size() for s in slabs if s is not None)

    @property
    def nbytes(self) -> int:
        """Memory of keys and values."""
        return self.bytes_per_token * self.rows * self.capacity

    @property
    def longest(self) -> int:
        """Longest conversation that the memory allows."""
        return min(self.context, self.max_bytes // max(1, self.bytes_per_token) - 1)

    def limit(self, tokens: int) -> int:
        """Returns how many conversations of this length fit at the same time."""
        fitting = self.max_bytes // max(1, self.bytes_per_token * (tokens + 1))
        return int(min(self.max_rows, fitting))

    def forget(self) -> None:
        """Empties all rows."""
        self._owners.clear()
        for column in (self.held, self.valid, self.prompt, self.used):
            column[:] = 0

    def reserve(self, rows: int, tokens: int) -> None:
        """Makes room for ``rows`` conversations of ``tokens`` tokens, within `limit`.

        Conversations that no longer fit are dropped, the longest unused first.
        """
        # The last position of each row is where padding goes.
        need, capacity = tokens + 1, self.capacity
        if need > capacity:
            capacity = max(need, min(2 * capacity, self.context + 1))
        if max(rows, self.rows) * capacity * self.bytes_per_token > self.max_bytes:
            capacity = need
        fitting = self.max_bytes // max(1, capacity * self.bytes_per_token)
        total = int(min(max(rows, self.rows), max(rows, fitting)))
        if (total, capacity) != (self.rows, self.capacity):
            self._resize(total, capacity)

    def _resize(self, rows: int, capacity: int) -> None:
        fits = np.flatnonzero(self.held < capacity)
        recent = fits[np.argsort(-self.used[fits], kind="stable")][:rows]
        kept = np.sort(recent)
        self.evictions += int((self.held > 0).sum() - (self.held[kept] > 0).sum())
        old = (self.tokens[kept], self.held[kept], self.valid[kept], self.prompt[kept])
        used, width = self.used[kept], min(capacity, self.capacity)
        self._allocate(rows, capacity)
        n = len(kept)
        self.tokens[:n, :width] = old[0][:, :width]
        self.held[:n], self.valid[:n], self.prompt[:n] = old[1:]
        self.used[:n] = used
        room = max(rows, self.limit(capacity - 1)) if self.bytes_per_token else rows
        for layer in self.cache.layers:
            layer.resize(rows, capacity, room, kept.tolist(), self.valid[:n].tolist())

    def claim(self, jobs: Sequence[Job]) -> list[tuple[Job, Job, int]]:
        """Gives every job a row, with the longest known prefix in it.

        Args:
            jobs: At most as many as there are rows.

        Returns:
            Jobs that wait for another one's prompt: ``(job, other, tokens to copy from it)``.
        """
        self._batch = len(jobs)
        self._reach *= 0.99
        branching = [job for job in jobs if not self._continue(job)]
        waits = [self._branch(job) for job in branching]
        return [wait for wait in waits if wait is not None]

    def _continue(self, job: Job) -> bool:
        """Gives a job the row that its last turn was computed in, if that is still there."""
        shared = self._shared(job)
        shared[shared < self.prompt] = 0
        best = int(shared.max())
        shared[list(self._owners)] = 0
        row = int(shared.argmax())
        reuse = int(shared[row])
        # Worlds that have gone the same way so far have equal rows; any of them will do.
        if reuse == 0 or reuse < best:
            return False
        self._reach = max(self._reach, float(self._clock - self.used[row]))
        self._take(job, row, reuse)
        return True

    def known(self, job: Job) -> int:
        """Returns how many tokens of a job are held by some row."""
        return int(self._shared(job).max(initial=0))

    def _shared(self, job: Job) -> NDArray[np.int64]:
        """Returns how many leading tokens of a job each row holds, or will."""
        # The last positions are fed in any case: their logits are what the job is about.
        width = min(len(job.ids) - job.keep, self.capacity)
        equal = self.tokens[:, :width] == job.ids[:width]
        prefix = np.where(equal.all(axis=1), width, equal.argmin(axis=1) if width else 0)
        return np.minimum(prefix, self.held)

    def _take(self, job: Job, row: int, reuse: int) -> None:
        self._own(job, row)
        job.position = job.cached = reuse
        size = len(job.ids)
        self.tokens[row, :size] = job.ids
        self.held[row], self.prompt[row] = size, size - job.keep + 1
        self.valid[row] = reuse

    def _own(self, job: Job, row: int) -> None:
        self._clock += 1
        self._owners[row] = job
        self.used[row] = self._clock
        job.row = row

    def _branch(self, job: Job) -> tuple[Job, Job, int] | None:
        """Starts a conversation from the best prefix that any row holds."""
        shared = self._shared(job)
        ready = np.minimum(shared, self.valid)
        source = int(ready.argmax())
        reuse = int(ready[source])
        coming = int(shared.argmax())
        gain = int(shared[coming]) - reuse
        missed = job.returning and 2 * reuse < len(job.ids)
        row = self._room(source, int(self.held[source]) - reuse, missed)
        if gain >= _WORTH_WAITING and row != coming:
            self._own(job, row)
            self.held[row] = self.valid[row] = 0  # nobody can wait for one who waits
            return job, self._owners[coming], int(shared[coming])
        if row != source:
            self._copy(source, row, reuse)
        self._take(job, row, reuse)
        return None

    def _room(self, source: int, loss: int, missed: bool) -> int:
        """Returns the row for a branch: an empty one, or the one that is cheapest to lose.

        Args:
            source: Row with the trunk.
            loss: Tokens of it that are lost when the branch takes its place.
            missed: The conversation was here before, and its row has been given away.
        """
        free = [row for row in range(self.rows) if row not in self._owners]
        empty = [row for row in free if self.held[row] == 0]
        if empty:
            return empty[0]
        oldest = min(free, key=lambda row: int(self.used[row]))
        # Rows that conversations come back to are about as old as `_reach`; a row that is much
        # older belongs to an episode that has ended.
        stale = self._clock - self.used[oldest] > 2 * self._reach + self._batch
        if (missed or not stale) and self._grow():
            return len(free) + len(self._owners)
        if source in free and loss <= self.held[oldest]:
            return source
        self.evictions += 1
        return oldest

    def _grow(self) -> bool:
        rows = min(self.rows + max(1, self.rows // 2), self.max_rows)
        within = rows * self.capacity * self.bytes_per_token <= self.max_bytes
        if rows == self.rows or not within:
            return False
        self._resize(rows, self.capacity)
        return True

    def _copy(self, source: int, target: int, length: int) -> None:
        if length:
            for layer in self.cache.layers:
                layer.copy(source, target, length)

    def settle(self, waits: Sequence[tuple[Job, Job, int]]) -> None:
        """Gives waiting jobs the prefix that the others have computed by now."""
        for job, other, length in waits:
            self._copy(other.row, job.row, length)
            self._take(job, job.row, length)

    def gather(self, jobs: Sequence[Job]) -> None:
        """Moves jobs that lie far apart into neighbouring rows, so that one view covers them.

        A few rows of a view may belong to nobody who asked: a row that is computed in vain costs a
        third of what moving one costs, per token.
        """
        rows = sorted(job.row for job in jobs)
        count = len(rows)
        if 8 * count >= 7 * (rows[-1] - rows[0] + 1):
            return
        for row, job in self._owners.items():
            self.valid[row] = job.position
        starts = [min(row, self.rows - count) for row in rows]
        first = max(starts, key=lambda s: sum(s <= row < s + count for row in rows))
        taken = set(rows)
        holes = [row for row in range(first, first + count) if row not in taken]
        outside = [row for row in rows if not first <= row < first + count]
        for a, b in zip(outside, holes, strict=True):
            self._swap(a, b)

    def _swap(self, a: int, b: int) -> None:
        length = int(max(self.valid[a], self.valid[b]))
        for layer in self.cache.layers:
            layer.swap(a, b, length)
        for column in (self.tokens, self.held, self.valid, self.prompt, self.used):
            column[[a, b]] = column[[b, a]]
        owners = {a: self._owners.pop(b, None), b: self._owners.pop(a, None)}
        for row, job in owners.items():
            if job is not None:
                self._owners[row] = job
                job.row = row

    def commit(self, jobs: Sequence[Job]) -> None:
        """Records what the rows of finished jobs hold."""
        for job in jobs:
            size = len(job.ids)
            fed = job.tokens[: job.position - size]
            self.tokens[job.row, size : size + len(fed)] = fed
            self.held[job.row] = self.valid[job.row] = job.position
        self._owners.clear()
