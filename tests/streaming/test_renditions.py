from __future__ import annotations

import asyncio
import io
import wave
from typing import Any

import av
import numpy as np

from streaming.channel import Channel
from streaming.chunk_log import BEGINNING, MemoryLog
from streaming.counters import Counters
from streaming.frames import PCM_RATE_HZ, TICKS_PER_S
from streaming.renditions import (
    HALVE_TICKS,
    MP3_BIT_RATE,
    Renditions,
    decode,
    frame_span,
    halve,
    mp3_frames,
    mp3_tail,
    packets_of,
    wav_header,
    wav_samples,
)
from streaming.session import LiveSession
from streaming.tap import run_up
from tests.streaming.speaking import SID, create
from tests.streaming.test_ogg import opus

# of LAME and of its decoders, and the frame before the first sample
DELAY = 1105 + 576


def spoken(*seconds: float) -> tuple[Channel, np.ndarray[Any, Any]]:
    """A session of sentences with a tone each, and what one decoder hears of it."""
    log = MemoryLog()
    session = create(log)
    said = [tone for n, each in enumerate(seconds) for tone in sentence(session, n, each)]
    session.end("done")
    channel = Channel(SID, Counters())
    channel.extend(log.read(SID, BEGINNING, 10_000))
    return channel, np.concatenate(said)


def sentence(session: LiveSession, seg: int, seconds: float) -> list[np.ndarray[Any, Any]]:
    """Speak one with an encoder of its own, as after a cut; gives its sound."""
    if seg:
        session.cut(seg, "retry")
    packets = opus(seconds, 300.0 + 100 * seg)
    for n in range(0, len(packets), 10):
        some = packets[n : n + 10]
        last = n + 10 >= len(packets)
        session.audio(seg, 960 * len(some), some, first=n == 0, last=last)
    return [halve(decode(packets))]


def samples(channel: Channel) -> np.ndarray[Any, Any]:
    parts = [wav_samples(channel.slots[i], run_up(channel, i)) for i in channel.audio]
    return np.frombuffer(b"".join(parts), "<i2")


def test_samples_of_the_chunks_join_without_a_seam() -> None:
    channel, whole = spoken(1.0, 0.74)

    joined = samples(channel)

    assert len(joined) == len(whole) == round(1.74 * PCM_RATE_HZ)
    assert np.abs(joined.astype(int) - whole).max() <= 2


def test_mp3_frames_of_the_chunks_sound_like_those_of_one_encoder() -> None:
    channel, whole = spoken(1.5)
    last = channel.audio[-1]
    frames = [mp3_frames(channel.slots[i], run_up(channel, i)) for i in channel.audio]
    frames.append(mp3_tail(channel.slots[last], run_up(channel, last)))

    heard = mp3_decoded(b"".join(frames))
    noise = (
        heard[DELAY:][: len(whole)] - mp3_decoded(one_encoder(whole))[DELAY - 576 :][: len(whole)]
    )

    assert np.abs(noise[1_000:-1_000]).max() < 0.01 * np.abs(whole).max()
    assert len(heard) >= DELAY + len(whole)


def one_encoder(pcm: np.ndarray[Any, Any]) -> bytes:
    codec: Any = av.CodecContext.create("libmp3lame", "w")
    codec.sample_rate, codec.layout, codec.format = PCM_RATE_HZ, "mono", "s16p"
    codec.bit_rate = MP3_BIT_RATE
    codec.open()
    frame: Any = av.AudioFrame.from_ndarray(pcm[None, :], format="s16p", layout="mono")
    frame.sample_rate, frame.pts = PCM_RATE_HZ, 0
    return b"".join(bytes(packet) for some in (frame, None) for packet in codec.encode(some))


def mp3_decoded(body: bytes) -> np.ndarray[Any, Any]:
    with av.open(io.BytesIO(body), format="mp3") as container:
        parts = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return np.concatenate(parts) * 32768


def test_frames_follow_the_timeline_and_need_no_other_frame() -> None:
    channel, _ = spoken(1.0)
    slots = [channel.slots[index] for index in channel.audio]
    spans = [frame_span(slot) for slot in slots]
    bodies = [mp3_frames(slot, []) for slot in slots]

    assert [first for first, _ in spans[1:]] == [last for _, last in spans[:-1]]
    assert [len(body) // 192 for body in bodies] == [last - first for first, last in spans]
    # main_data_begin, the reach into earlier frames, is the byte behind the header
    assert {body[at + 4] for body in bodies for at in range(0, len(body), 192)} == {0}


def test_a_chunk_is_made_once_for_all_listeners() -> None:
    channel, _ = spoken(0.6)

    async def many() -> tuple[set[bytes], int]:
        renditions = Renditions()
        asked = [renditions.of(channel, channel.audio[1], "mp3") for _ in range(50)]
        bodies = set(await asyncio.gather(*asked))
        bodies.add(await renditions.of(channel, channel.audio[1], "mp3"))
        made = renditions.made
        renditions.close()
        return bodies, made

    bodies, made = asyncio.run(many())

    assert (len(bodies), made) == (1, 1)


def test_a_listener_who_leaves_does_not_take_the_work_from_the_others() -> None:
    channel, _ = spoken(0.6)

    async def two() -> bytes:
        renditions = Renditions()
        asked = [
            asyncio.create_task(renditions.of(channel, channel.audio[0], "wav")) for _ in range(2)
        ]
        await asyncio.sleep(0)
        asked[0].cancel()
        body = await asked[1]
        renditions.close()
        return body

    assert len(asyncio.run(two())) == 2 * PCM_RATE_HZ // 5


def test_no_more_is_kept_than_the_cache_may_hold() -> None:
    channel, _ = spoken(2.0)

    async def all_twice() -> int:
        renditions = Renditions(cache_bytes=3 * 9600)
        for _ in range(2):
            for index in channel.audio:
                await renditions.of(channel, index, "wav")
        made = renditions.made
        renditions.close()
        return made

    assert asyncio.run(all_twice()) == 2 * len(channel.audio)


def test_silence_has_the_length_that_its_chunk_says() -> None:
    log = MemoryLog()
    session = create(log)
    session.silence(0, TICKS_PER_S // 2 + 100, first=True, last=True)
    channel = Channel(SID, Counters())
    channel.extend(log.read(SID, BEGINNING))
    (index,) = channel.audio

    pcm = np.frombuffer(wav_samples(channel.slots[index], []), "<i2")

    assert len(pcm) == PCM_RATE_HZ // 2 + 50
    assert np.abs(pcm).max() <= 1
    assert len(packets_of(channel.slots[index])) == 26


def test_halving_keeps_what_fits_and_takes_away_what_does_not() -> None:
    at = np.arange(48_000) / 48_000
    low, high = (np.sin(2 * np.pi * hz * at) * 10_000 for hz in (3_000, 20_000))

    halved = halve(low.astype(np.int16))

    late = np.sin(2 * np.pi * 3_000 * (at[::2] - HALVE_TICKS / 48_000)) * 10_000
    assert len(halved) == 24_000
    assert np.abs(halved - late)[100:].max() < 20
    assert np.abs(halve(high.astype(np.int16)))[100:].max() < 20


def test_a_header_with_a_length_is_read_by_others() -> None:
    body = wav_header(480) + bytes(480)

    with wave.open(io.BytesIO(body)) as file:
        shape = (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes())

    assert shape == (1, 2, 24_000, 240)
    assert wav_header(None)[4:8] == wav_header(None)[-4:] == b"\xff" * 4
