"""A worker that can be killed: speaks 60 s of sound into a live log and goes on where it was.

python -m tests.acceptance.talker REDIS_URL SID FENCE
"""

from __future__ import annotations

import sys
import time

from streaming.errors import LogLost
from streaming.redis_log import RedisLog
from streaming.session import LiveSession
from tests.streaming.speaking import CHUNK_TICKS, packets

SENTENCES = 100
CHUNKS = 3
CHUNK_S = 0.04  # five times faster than it sounds


def main(url: str, sid: str, fence: int) -> None:
    """Speak from the first sentence that is not complete."""
    log = RedisLog(url)
    try:
        session = LiveSession.take_over(log, sid, fence)
        session.cut(session.last_full_seg + 1, "retry")
    except LogLost:
        session = LiveSession.create(log, sid, fence, meta={"title": "Weekly"})
    for seg in range(session.last_full_seg + 1, SENTENCES):
        session.sentence(seg, f"Sentence {seg}.")
        for n in range(CHUNKS):
            first, last = n == 0, n == CHUNKS - 1
            session.audio(seg, CHUNK_TICKS, packets(seg, n), first=first, last=last)
            time.sleep(CHUNK_S)
    session.end("done")
    log.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
