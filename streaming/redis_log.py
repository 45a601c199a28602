"""`ChunkLog` on Redis Streams (Valkey, or Redis from 6.2 on).

Per session `sid` there are three keys with one hash tag: `nc:{sid}:log`, the stream of entries,
`nc:{sid}:pcm`, the samples of the last minute, and `nc:{sid}:meta`, a hash of fence, epoch and
head. Position (seq, k) is the stream id `seq+1`-`k`, because 0-0 is no id; the server itself
refuses ids that do not grow. All checks and writes of a call are one script, so a call is one round
trip and happens entirely or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import RedisError

from streaming.chunk_log import (
    IDLE_KEEP_S,
    KEEP_S,
    PAGE,
    ChunkLog,
    Entry,
    LogInfo,
    LogReader,
    Position,
)
from streaming.errors import Fenced, LogLost, LogUnavailable, SessionExists

READ_COUNT = 64  # entries per session and wake-up
BLOCK_MS = 1000
WAKE_KEEP_S = 3600

_CREATE = """
local fence = redis.call('HGET', KEYS[3], 'fence')
if fence and tonumber(fence) > tonumber(ARGV[1]) then return 'fenced ' .. fence end
if fence and ARGV[6] == '0' then return 'exists' end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
redis.call('HSET', KEYS[3], 'fence', ARGV[1], 'epoch', ARGV[2], 'head', ARGV[3], 'about', ARGV[4])
redis.call('PEXPIRE', KEYS[3], ARGV[5])
return 'ok'
"""

_TAKE_OVER = """
local fence = redis.call('HGET', KEYS[3], 'fence')
if not fence then return 'lost' end
if tonumber(fence) > tonumber(ARGV[1]) then return 'fenced ' .. fence end
redis.call('HSET', KEYS[3], 'fence', ARGV[1])
return 'ok'
"""

# ARGV: fence, epoch, id before, next epoch, finish, oldest PCM id, keep and idle keep in ms; then
# id, header, body and PCM of each entry.
_APPEND = """
local now = redis.call('HMGET', KEYS[3], 'fence', 'epoch', 'head', 'finished')
if not now[1] then return 'lost' end
if tonumber(now[1]) ~= tonumber(ARGV[1]) then return 'fenced ' .. now[1] end
if now[3] == ARGV[#ARGV - 3] then return 'ok' end
if now[2] ~= ARGV[2] then return 'epoch ' .. now[2] end
if now[3] ~= ARGV[3] then return 'lost' end
for i = 9, #ARGV, 4 do
  local id, header, body, pcm = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if header == '' then
    redis.call('XADD', KEYS[1], id, 'j', body)
  else
    redis.call('XADD', KEYS[1], id, 'h', header, 'o', body)
  end
  if pcm ~= '' then redis.call('XADD', KEYS[2], id, 'p', pcm) end
end
redis.call('XTRIM', KEYS[2], 'MINID', ARGV[6])
local finished = ARGV[5] == '1' or now[4] == '1'
redis.call('HSET', KEYS[3], 'head', ARGV[#ARGV - 3], 'epoch', ARGV[4],
           'finished', finished and '1' or '0')
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], finished and ARGV[7] or ARGV[8]) end
return 'ok'
"""


class RedisLog(ChunkLog):
    """`ChunkLog` on the server at `url` (`redis://host:port/db` or `unix:///path/to/socket`).

    A finished session can be heard for another `keep_s` seconds.
    """

    def __init__(self, url: str, *, keep_s: float = KEEP_S) -> None:
        self._url = url
        self._keep_ms = int(keep_s * 1000)
        # Any: redis-py types an answer as the union of all that settings can make of it.
        self._redis: Any = redis.Redis.from_url(url)
        self._create = self._redis.register_script(_CREATE)
        self._take_over = self._redis.register_script(_TAKE_OVER)
        self._append = self._redis.register_script(_APPEND)

    def create(
        self,
        sid: str,
        fence: int,
        meta: Mapping[str, str],
        *,
        epoch: int,
        start: Position,
        replace: bool = False,
    ) -> None:
        """See `ChunkLog.create`."""
        about = json.dumps(dict(meta))
        args: list[str | int] = [fence, epoch, _id(start), about]
        args += [int(IDLE_KEEP_S * 1000), int(replace)]
        with _reaching():
            answer = self._create(keys=_keys(sid), args=args)
        _raise_refusal(sid, fence, answer)
        if answer == b"exists":
            raise SessionExists(f"session {sid} has a log already")

    def take_over(self, sid: str, fence: int) -> LogInfo:
        """See `ChunkLog.take_over`."""
        with _reaching():
            answer = self._take_over(keys=_keys(sid), args=[fence])
            _raise_refusal(sid, fence, answer)
            state = self._redis.hgetall(_keys(sid)[2])
        if not state:
            raise LogLost(f"session {sid} has no log")
        return _info(state)

    def append(
        self,
        sid: str,
        fence: int,
        epoch: int,
        after: Position,
        entries: Sequence[Entry],
        *,
        pcm: Mapping[int, bytes] | None = None,
        pcm_from: int = 0,
        next_epoch: int | None = None,
        finish: bool = False,
    ) -> None:
        """See `ChunkLog.append`."""
        args: list[str | int | bytes] = [fence, epoch, _id(after), next_epoch or epoch]
        args += [int(finish), _id((pcm_from, 0)), self._keep_ms, int(IDLE_KEEP_S * 1000)]
        for entry in entries:
            samples = pcm.get(entry.seq, b"") if pcm and entry.header else b""
            args += [_id(entry.position), entry.header, entry.body, samples]
        with _reaching():
            answer = self._append(keys=_keys(sid), args=args)
        _raise_refusal(sid, fence, answer)

    def read(self, sid: str, after: Position, limit: int = PAGE) -> list[Entry]:
        """See `ChunkLog.read`."""
        with _reaching():
            rows = self._redis.xrange(_keys(sid)[0], min=f"({_id(after)}", max="+", count=limit)
        return [_entry(row) for row in rows]

    def forget(self, sid: str) -> None:
        """See `ChunkLog.forget`."""
        with _reaching():
            self._redis.delete(*_keys(sid))

    def size_bytes(self) -> int:
        """See `ChunkLog.size_bytes`; the server's, whatever else it holds."""
        with _reaching():
            return int(self._redis.info("memory")["used_memory"])

    def reader(self) -> LogReader:
        """See `ChunkLog.reader`."""
        return _RedisReader(self._url)

    def close(self) -> None:
        """Close the connections for writing."""
        self._redis.close()


class _RedisReader(LogReader):
    def __init__(self, url: str) -> None:
        self._redis: Any = redis.asyncio.Redis.from_url(url)
        self._followed: dict[str, str] = {}  # last stream id by key of the log
        self._sids: dict[str, str] = {}
        self._wake_key = f"nc:gw:{secrets.token_hex(6)}:wake"
        self._wake_id = "0-0"
        self._wakes: set[asyncio.Task[None]] = set()

    async def info(self, sid: str) -> LogInfo | None:
        with _reaching():
            state = await self._redis.hgetall(_keys(sid)[2])
        return _info(state) if state else None

    async def read(self, sid: str, after: Position, limit: int = PAGE) -> list[Entry]:
        with _reaching():
            first = f"({_id(after)}"
            rows = await self._redis.xrange(_keys(sid)[0], min=first, max="+", count=limit)
        return [_entry(row) for row in rows]

    async def pcm(self, sid: str, after: int) -> list[tuple[int, bytes]]:
        with _reaching():
            rows = await self._redis.xrange(_keys(sid)[1], min=f"({_id((after, 0))}", max="+")
        return [(_position(row_id)[0], fields[b"p"]) for row_id, fields in rows]

    def follow(self, sid: str, after: Position) -> None:
        key = _keys(sid)[0]
        self._followed[key], self._sids[key] = _id(after), sid
        # The read that waits now does not know this key: end it.
        wake = asyncio.create_task(self._wake())
        self._wakes.add(wake)
        wake.add_done_callback(self._wakes.discard)

    def unfollow(self, sid: str) -> None:
        self._followed.pop(_keys(sid)[0], None)
        self._sids.pop(_keys(sid)[0], None)

    async def changes(self) -> dict[str, list[Entry]]:
        streams: dict[Any, Any] = {**self._followed, self._wake_key: self._wake_id}
        with _reaching():
            answer = await self._redis.xread(streams, count=READ_COUNT, block=BLOCK_MS)
        news: dict[str, list[Entry]] = {}
        for raw_key, rows in answer or []:
            key, last = raw_key.decode(), rows[-1][0].decode()
            if key == self._wake_key:
                self._wake_id = last
            elif key in self._followed:
                self._followed[key] = last
                news[self._sids[key]] = [_entry(row) for row in rows]
        return news

    async def close(self) -> None:
        await asyncio.gather(*self._wakes)
        await self._redis.aclose()

    async def _wake(self) -> None:
        # If the store is away, `changes` fails by itself and takes the new key up next time.
        with contextlib.suppress(RedisError, OSError):
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.xadd(self._wake_key, {"w": "1"}, maxlen=1, approximate=False)
                pipe.expire(self._wake_key, WAKE_KEEP_S)
                await pipe.execute()


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise LogUnavailable(f"the chunk log's store failed: {error}") from error


def _raise_refusal(sid: str, fence: int, answer: bytes) -> None:
    word, _, value = answer.decode().partition(" ")
    if word == "lost":
        raise LogLost(f"the log of session {sid} is gone or not as this writer left it")
    if word == "fenced":
        raise Fenced(f"session {sid} belongs to fence {value}, not {fence}")
    if word == "epoch":
        raise Fenced(f"session {sid} is in epoch {value} already")


def _keys(sid: str) -> list[str]:
    return [f"nc:{{{sid}}}:{part}" for part in ("log", "pcm", "meta")]


def _id(position: Position) -> str:
    seq, k = position
    return f"{seq + 1}-{k}" if seq >= -1 else "0-0"


def _position(row_id: bytes) -> Position:
    seq, _, k = row_id.partition(b"-")
    return (int(seq) - 1, int(k))


def _entry(row: tuple[bytes, dict[bytes, bytes]]) -> Entry:
    position, fields = _position(row[0]), row[1]
    return Entry(*position, fields.get(b"h", b""), fields[b"j" if b"j" in fields else b"o"])


def _info(state: Mapping[bytes, bytes]) -> LogInfo:
    head = _position(state[b"head"])
    about = json.loads(state[b"about"])
    return LogInfo(int(state[b"fence"]), int(state[b"epoch"]), head, about)
