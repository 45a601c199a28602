"""Calls of fixed shape: recorded once as a CUDA graph, replayed with one launch.

At 50 codes a second a GPU spends more time on being told than on computing. A region that works on
buffers of fixed shapes, never asks the host and never branches on values can be recorded; what is
real in the buffers is said by tensors (lengths, masks), so that one recording serves every call of
its bucket. Without CUDA, or where recording fails, the very same region is run plainly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Mode = Literal["cuda", "eager"]
Outputs = tuple[Tensor, ...]
_REHEARSALS = 2  # libraries choose algorithms and allocate workspaces in the first calls


class StaticCall:
    """A region on its own buffers.

    Args:
        buffers: inputs by name; write into them before a call, never replace them.
        region: takes the buffers, gives tensors of fixed shapes. Others' tensors that it reads or
            changes must never move.

    Attributes:
        buffers: as given.
    """

    def __init__(self, buffers: Mapping[str, Tensor], region: Callable[..., Outputs]) -> None:
        self.buffers = buffers
        self._region = region
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: Outputs = ()

    @property
    def is_recorded(self) -> bool:
        """Calls are replays."""
        return self._graph is not None

    def __call__(self) -> Outputs:
        """Run on what is in the buffers; copy what you keep, the next call overwrites it."""
        if self._graph is None:
            return self._region(**self.buffers)
        self._graph.replay()
        return self._outputs

    def record(self, pool: Any) -> None:
        """Record the region as it is now; memory comes from `pool`, which recordings share."""
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_REHEARSALS):
                self._region(**self.buffers)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            outputs = self._region(**self.buffers)
        self._graph, self._outputs = graph, outputs


class StaticCalls:
    """The calls of one model, by bucket.

    Args:
        mode: `cuda` records what `warm` names; `eager` never records.
    """

    def __init__(self, mode: Mode) -> None:
        self._records = mode == "cuda"
        self._pool: Any = None  # memory that recordings share
        self._calls: dict[Hashable, StaticCall] = {}

    def get(self, bucket: Hashable, make: Callable[[], StaticCall]) -> StaticCall:
        """The call of a bucket; what was not recorded by `warm` runs plainly."""
        if bucket not in self._calls:
            self._calls[bucket] = make()
        return self._calls[bucket]

    def warm(self, bucket: Hashable, make: Callable[[], StaticCall]) -> None:
        """Record the call of a bucket, with what `make` leaves in its buffers.

        Recording runs the region: buffers must say that no row is real.
        """
        before = self._calls.get(bucket)
        if not self._records or (before is not None and before.is_recorded):
            return
        call = self._calls[bucket] = make()
        try:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            call.record(self._pool)
        except Exception as error:
            self._records = False
            log.warning("CUDA graphs stay off, each step is slower: %s: %s", bucket, error)

    @property
    def recorded(self) -> int:
        """Buckets that are replayed."""
        return sum(call.is_recorded for call in self._calls.values())


def at_least(size: int, sizes: Sequence[int], *, step: int = 512) -> int:
    """The smallest of rising `sizes` that holds `size`; beyond them, multiples of `step`."""
    return next((s for s in sizes if s >= size), -(-size // step) * step)
