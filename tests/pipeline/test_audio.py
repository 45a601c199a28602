"""Real encoders, judged by decoding what they made."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from engine.base import SAMPLE_RATE_HZ, Pcm
from pipeline.audio import (
    AUDIO_PROFILE,
    FRAME_SAMPLES,
    PACKET_SAMPLES,
    AudioBroken,
    Encoder,
    Format,
    LiveEncoder,
    LiveFrame,
    Recording,
    decode,
    duration_ms,
    from_flac,
    pad_to_packet,
    to_flac,
)
from pipeline.captions import ChapterMark

SPEC = "5f" * 32


@pytest.fixture
def encoder() -> Iterator[Encoder]:
    made = Encoder()
    yield made
    made.close()


def voice(samples: int, seed: int = 1) -> Pcm:
    """Something like a vowel: a gliding tone with overtones, swelling four times a second."""
    t = np.arange(samples) / SAMPLE_RATE_HZ
    phase = 2 * np.pi * (120 + 10 * seed) * t + 3 * np.sin(2 * np.pi * 0.7 * t)
    tone = sum(np.sin(n * phase) / n for n in range(1, 8))
    return (6000 * tone * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))).astype(np.int16)


def opus_decoded(packets: list[bytes]) -> Pcm:
    """What a player hears, at 48 kHz, start delay included."""
    codec: Any = av.CodecContext.create("opus", "r")
    codec.sample_rate = 48_000
    codec.layout = "mono"
    frames = [frame for packet in packets for frame in codec.decode(av.Packet(packet))]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def spoken(live: LiveEncoder, pcm: Pcm, *, chunk: int) -> list[LiveFrame]:
    frames: list[LiveFrame] = []
    for start in range(0, len(pcm), chunk):
        is_last = start + chunk >= len(pcm)
        frames += live.push(pcm[start : start + chunk], first=start == 0, last=is_last)
    return frames


def assert_alike(heard: Pcm, meant: Pcm) -> None:
    """The same sound at the same place; Opus keeps the shape of a wave only roughly."""
    size = len(heard) + len(meant)
    spectra = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(meant, size))
    match = np.fft.irfft(spectra, size)
    best = int(np.argmax(match))
    norm = np.linalg.norm(heard.astype(float)) * np.linalg.norm(meant.astype(float))
    assert match[best] / norm > 0.85
    assert min(best, size - best) <= SAMPLE_RATE_HZ // 2000, f"{best} samples off"


# --- live


def test_every_20_ms_become_a_packet_at_once(encoder: Encoder) -> None:
    frames = spoken(LiveEncoder(encoder), voice(SAMPLE_RATE_HZ), chunk=4000)

    for frame in frames:
        assert frame.dur_ticks == len(frame.packets) * 960 == len(frame.pcm)


@pytest.mark.parametrize("chunk", [480, 700, 4800, 11_111, 100_000])
@pytest.mark.parametrize("samples", [1, 479, 480, 4799, 4800, 4801, 24_000, 37_123])
def test_frames_hold_a_sentence_exactly_and_padded(
    encoder: Encoder, chunk: int, samples: int
) -> None:
    pcm = voice(samples)

    frames = spoken(LiveEncoder(encoder), pcm, chunk=chunk)

    joined = np.frombuffer(b"".join(frame.pcm for frame in frames), "<i2")
    assert np.array_equal(joined, pad_to_packet(pcm))
    assert [frame.first for frame in frames] == [True] + [False] * (len(frames) - 1)
    assert [frame.last for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert all(len(frame.pcm) <= 2 * FRAME_SAMPLES for frame in frames)


def test_what_listeners_decode_lasts_as_long_as_announced_and_is_the_voice(
    encoder: Encoder,
) -> None:
    live = LiveEncoder(encoder)
    sentences = [voice(30_000, seed=n) for n in range(1, 4)]

    frames = [frame for one in sentences for frame in spoken(live, one, chunk=5000)]

    heard = opus_decoded([packet for frame in frames for packet in frame.packets])
    assert len(heard) == sum(frame.dur_ticks for frame in frames)
    meant = np.concatenate([pad_to_packet(one) for one in sentences])
    assert_alike(heard[live.skip :: 2], meant)
    assert live.skip == 312


def test_first_sound_of_a_stream_leaves_early_and_later_sentences_fill_frames(
    encoder: Encoder,
) -> None:
    live = LiveEncoder(encoder)

    too_little = live.push(voice(1900), first=True, last=False)
    early = live.push(voice(200), first=False, last=False)
    live.push(voice(1000), first=False, last=True)
    second = live.push(voice(2400), first=True, last=False)

    assert too_little == []
    assert [frame.dur_ticks for frame in early] == [80 * 48]
    assert second == []


def test_bare_last_mark_closes_a_sentence_that_ended_on_a_border(encoder: Encoder) -> None:
    live = LiveEncoder(encoder)

    frames = live.push(voice(FRAME_SAMPLES * 2), first=True, last=False)
    closing = live.push(np.empty(0, np.int16), first=False, last=True)

    assert not any(frame.last for frame in frames)
    assert [frame.last for frame in closing] == [True]
    assert sum(len(frame.pcm) for frame in frames + closing) == FRAME_SAMPLES * 2 * 2


def test_sentence_without_sound_makes_no_frame(encoder: Encoder) -> None:
    assert LiveEncoder(encoder).push(np.empty(0, np.int16), first=True, last=True) == []


def test_unfinished_sentence_is_dropped_when_the_next_begins(encoder: Encoder) -> None:
    live = LiveEncoder(encoder)
    live.push(voice(FRAME_SAMPLES + 100), first=True, last=False)

    frames = live.push(voice(960), first=True, last=True)

    assert [(frame.first, frame.last, len(frame.packets)) for frame in frames] == [(True, True, 2)]


def test_live_frames_do_not_wait_behind_a_recording(encoder: Encoder) -> None:
    recording = Recording(encoder, spec_hash=SPEC)
    for _ in range(20):
        recording.add(voice(SAMPLE_RATE_HZ * 10))
    waiting = encoder.file(lambda: None)

    frames = LiveEncoder(encoder).push(voice(FRAME_SAMPLES), first=True, last=True)

    assert frames
    assert not waiting.done()


# --- recordings


def made(
    encoder: Encoder, pieces: list[Pcm], formats: tuple[Format, ...] = ("opus", "mp3", "wav")
) -> dict[str, bytes]:
    recording = Recording(encoder, formats=formats, spec_hash=SPEC, title="周会 & notes", lang="zh")
    for pcm in pieces:
        recording.add(pcm)
    length_ms = sum(map(len, pieces)) * 1000 // SAMPLE_RATE_HZ
    chapters = [ChapterMark(0, 700, "Eins"), ChapterMark(700, length_ms, "二 <&>")]
    return {one.format: one.body for one in recording.finish(chapters)}


def test_each_file_holds_the_voice_at_its_length(encoder: Encoder) -> None:
    pieces = [pad_to_packet(voice(31_234, seed=n)) for n in range(1, 5)]

    files = made(encoder, pieces)

    meant = np.concatenate(pieces)
    for body in files.values():
        heard = decode(body)
        assert abs(len(heard) - len(meant)) <= SAMPLE_RATE_HZ // 20
        assert_alike(heard, meant)
        assert abs(duration_ms(body) - len(meant) * 1000 / SAMPLE_RATE_HZ) <= 50


def test_same_sound_makes_the_same_bytes_however_it_was_cut(encoder: Encoder) -> None:
    pcm = voice(PACKET_SAMPLES * 100)

    whole = made(encoder, [pcm])
    again = made(encoder, [pcm])
    in_parts = made(encoder, [pcm[: PACKET_SAMPLES * 33], pcm[PACKET_SAMPLES * 33 :]])

    assert whole == again == in_parts


def test_ogg_serial_comes_from_the_hash(encoder: Encoder) -> None:
    body = made(encoder, [voice(PACKET_SAMPLES * 50)], ("opus",))["opus"]

    assert struct.unpack_from("<I", body, 14)[0] == int(SPEC[:7], 16)


def test_players_find_title_language_and_chapters(encoder: Encoder) -> None:
    files = made(encoder, [voice(SAMPLE_RATE_HZ * 2)])

    found = {}
    for name in ("mp3", "opus"):
        with av.open(io.BytesIO(files[name])) as container:
            tags = {**container.metadata, **container.streams[0].metadata}
            marks = [
                (one["start"] * one["time_base"], one["metadata"]["title"])
                for one in container.chapters()
            ]
            found[name] = (tags["title"], tags["language"], marks)
    marks = [(Fraction(0), "Eins"), (Fraction(7, 10), "二 <&>")]
    assert found == {"mp3": ("周会 & notes", "zho", marks), "opus": ("周会 & notes", "zh", marks)}


def test_mp3_is_constant_128_kb_s_and_mono(encoder: Encoder) -> None:
    body = made(encoder, [voice(SAMPLE_RATE_HZ * 4)], ("mp3",))["mp3"]

    with av.open(io.BytesIO(body)) as container:
        (stream,) = container.streams.audio
        sizes = {packet.size for packet in container.demux(stream) if packet.size}
        assert stream.codec_context.layout.name == "mono"
    assert sizes == {128_000 // 8 * 576 // SAMPLE_RATE_HZ}


def test_wav_is_the_pcm_itself(encoder: Encoder) -> None:
    pcm = voice(PACKET_SAMPLES * 9)

    body = made(encoder, [pcm], ("wav",))["wav"]

    with wave.open(io.BytesIO(body)) as file:
        assert file.getparams()[:4] == (1, 2, SAMPLE_RATE_HZ, len(pcm))
        assert file.readframes(len(pcm)) == pcm.tobytes()


def test_caller_may_reuse_its_buffer(encoder: Encoder) -> None:
    buffer = voice(PACKET_SAMPLES * 50)
    meant = buffer.copy()
    recording = Recording(encoder, formats=("wav",), spec_hash=SPEC)

    recording.add(buffer)
    buffer[:] = 0

    (file,) = recording.finish()
    assert np.array_equal(decode(file.body), meant)


def test_recording_of_nothing_is_refused(encoder: Encoder) -> None:
    with pytest.raises(AudioBroken, match="no sound"):
        Recording(encoder, spec_hash=SPEC).finish()


def test_file_that_lost_sound_is_refused(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording(encoder, formats=("mp3",), spec_hash=SPEC)
    recording.add(voice(SAMPLE_RATE_HZ))
    track: Any = recording._tracks["mp3"]
    monkeypatch.setattr(track, "finish", lambda _chapters: to_flac(voice(SAMPLE_RATE_HZ // 2)))

    with pytest.raises(AudioBroken, match="mp3: 500 ms of 1000 ms arrived"):
        recording.finish()


def test_file_with_other_sound_of_the_same_length_is_refused(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording(encoder, formats=("mp3",), spec_hash=SPEC)
    recording.add(voice(SAMPLE_RATE_HZ))
    track: Any = recording._tracks["mp3"]
    monkeypatch.setattr(track, "finish", lambda _chapters: to_flac(voice(SAMPLE_RATE_HZ, seed=9)))

    with pytest.raises(AudioBroken, match="does not hold what was encoded"):
        recording.finish()


def test_file_that_came_out_is_described(encoder: Encoder) -> None:
    recording = Recording(encoder, formats=("opus",), spec_hash=SPEC)
    recording.add(voice(SAMPLE_RATE_HZ))

    (file,) = recording.finish()

    assert (file.content_type, file.duration_ms) == ("audio/ogg", 1000)
    assert (file.size_bytes, len(file.digest)) == (len(file.body), 64)
    assert all(isinstance(value, str) for value in AUDIO_PROFILE.values())


# --- whole pieces


@pytest.mark.parametrize("samples", [1, 480, 24_000, 123_457])
def test_flac_gives_back_every_sample(samples: int) -> None:
    noise = np.random.default_rng(7).integers(-32768, 32767, samples, dtype=np.int16)

    body = to_flac(noise)

    assert np.array_equal(from_flac(body), noise)
    assert to_flac(noise) == body


def test_flac_of_a_voice_is_smaller_than_its_pcm() -> None:
    pcm = voice(SAMPLE_RATE_HZ * 5)

    assert len(to_flac(pcm)) < pcm.nbytes * 0.8


@pytest.mark.parametrize("body", [b"", b"no sound", b"fLaC" + bytes(60)])
def test_broken_bytes_are_named_not_guessed_at(body: bytes) -> None:
    for read in (from_flac, decode, duration_ms):
        with pytest.raises(AudioBroken):
            read(body)


def test_damaged_flac_is_not_taken_for_silence() -> None:
    body = to_flac(voice(SAMPLE_RATE_HZ))

    with pytest.raises(AudioBroken):
        from_flac(body[: len(body) // 2])


def test_padding_adds_zeros_up_to_a_packet_and_nothing_to_a_whole_one() -> None:
    pcm = voice(500)

    padded = pad_to_packet(pcm)

    assert len(padded) == 2 * PACKET_SAMPLES
    assert np.array_equal(padded[:500], pcm)
    assert not padded[500:].any()
    assert pad_to_packet(padded) is padded
