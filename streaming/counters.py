"""What one gateway counts while it works, for metrics and tests."""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field


class Histogram:
    """Seconds by size: `counts[i]` of up to `BOUNDS[i]`, the last one of more than all."""

    BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)

    def __init__(self) -> None:
        self.counts = [0] * (len(self.BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect.bisect_left(self.BOUNDS, seconds)] += 1
        self.total += seconds


@dataclass(slots=True)
class Counters:
    """What this process has done, for metrics and tests."""

    writes: int = 0
    bytes: int = 0
    opened: int = 0
    left_lane: int = 0  # became a cursor because it was slow
    codec_down: int = 0
    skipped: int = 0  # jumps to the live edge
    stuck: int = 0
    errors: int = 0
    underruns: int = 0  # at clients, as their acks say
    underrun_ms: int = 0
    closed: Counter[int] = field(default_factory=Counter)  # by close code
    refused: Counter[str] = field(default_factory=Counter)  # by limit
    resumes: Counter[str] = field(default_factory=Counter)  # exact, cut, gone
    emit_to_gateway: Histogram = field(default_factory=Histogram)  # chunk made to chunk read here
    gateway_to_socket: Histogram = field(default_factory=Histogram)  # read to last write in a lane
    fanout: Histogram = field(default_factory=Histogram)  # first to last write of a lane
    ack: Histogram = field(default_factory=Histogram)  # chunk sent to chunk acknowledged
    open_to_frame: Histogram = field(default_factory=Histogram)  # where sound was there already
    click_to_sound: Histogram = field(default_factory=Histogram)  # as players say
    continuous: Counter[str] = field(default_factory=Counter)  # listened to the end: ok, broken, na
