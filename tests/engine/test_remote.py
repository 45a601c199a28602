"""engine/backends/remote.py against a real HTTP server that speaks with the tone engine."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from engine.backends import make_backend
from engine.backends.remote import Remote, read_voices
from engine.backends.tone import Tone, decode, sentence_code
from engine.base import SAMPLE_RATE_HZ, AudioChunk, Controls, SpeechRequest, Turn
from engine.engine import Engine
from engine.errors import (
    BadRequest,
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineStopped,
    UnknownVoice,
)

KEY = "sk-very-secret-4711"
NOTES = SpeechRequest(
    turns=(
        Turn("The team agreed, after all. Priya sends the budget of $48,500."),
        Turn("大家同意推迟发布。好。", pause_before_ms=500),
    )
)
Answer = Callable[[Request, dict[str, Any]], Awaitable[Response]]


def tones(text: str, speed: float = 1.0) -> bytes:
    """A text as the tone engine speaks it, in the server's own thread of work."""
    with Engine(Tone()) as engine:
        turn = Turn(text, controls=Controls(rate=speed))
        return b"".join(chunk.pcm.tobytes() for chunk in engine.speak(SpeechRequest((turn,))))


async def pieces(sound: bytes, size: int = 4_801) -> AsyncIterator[bytes]:
    for at in range(0, len(sound), size):
        yield sound[at : at + size]
        await asyncio.sleep(0)


async def speak(request: Request, body: dict[str, Any]) -> Response:
    sound = await asyncio.to_thread(tones, body["input"], body.get("speed", 1.0))
    return StreamingResponse(pieces(sound), media_type="audio/pcm")


def answers(status: int, content: object, **headers: str) -> Answer:
    async def answer(request: Request, body: dict[str, Any]) -> Response:
        return JSONResponse(content, status, headers)

    return answer


def sends(sound: bytes, media_type: str, **headers: str) -> Answer:
    async def answer(request: Request, body: dict[str, Any]) -> Response:
        return Response(sound, media_type=media_type, headers=headers)

    return answer


class SpeechHouse:
    """An OpenAI-shaped server in a thread.

    Attributes:
        asked: bodies of the speech requests so far. headers: those of the last one.
        next: answers that are given first, one each. voices: what the list of voices is.
        go: what waits in an answer goes on. gone: a caller went away.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.next: deque[Answer] = deque()
        self.voices: object = {"voices": ["nova", "zf_xiaoxiao", {"id": "ann", "name": "Ann"}]}
        self.lists = 0
        self.go, self.gone = threading.Event(), threading.Event()
        app = FastAPI()
        app.add_api_route("/v1/audio/speech", self._speech, methods=["POST"])
        app.add_api_route("/v1/audio/voices", self._voices, methods=["GET"])
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="critical",
                lifespan="off",
                ws="none",
                http="h11",
                ssl_certfile=certificate,
            )
        )
        self._socket = socket.create_server(("127.0.0.1", 0))
        scheme = "https" if certificate else "http"
        self.url = f"{scheme}://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    async def _speech(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.asked.append(body)
        self.headers = dict(request.headers)
        return await (self.next.popleft() if self.next else speak)(request, body)

    async def _voices(self) -> Response:
        self.lists += 1
        return JSONResponse(self.voices, 404 if self.voices is None else 200)

    async def waits(self, request: Request, body: dict[str, Any]) -> Response:
        """Answer nothing until told to, or until the caller is gone."""
        while not self.go.is_set():
            if await request.is_disconnected():
                self.gone.set()
                break
            await asyncio.sleep(0.01)
        return await speak(request, body)

    async def begins(self, request: Request, body: dict[str, Any]) -> Response:
        """Answer with 0.2 s of sound, the rest when told to."""
        sound = await asyncio.to_thread(tones, body["input"])

        async def halves() -> AsyncIterator[bytes]:
            try:
                yield sound[:9_600]
                while not self.go.is_set():
                    await asyncio.sleep(0.01)
                yield sound[9_600:]
            except asyncio.CancelledError:
                self.gone.set()
                raise

        return StreamingResponse(halves(), media_type="audio/pcm")

    async def breaks_off(self, request: Request, body: dict[str, Any]) -> Response:
        """Close the connection in the middle of the sound."""

        async def half() -> AsyncIterator[bytes]:
            yield tones(body["input"])[:9_600]
            raise ConnectionResetError

        return StreamingResponse(half(), media_type="audio/pcm")

    def __enter__(self) -> SpeechHouse:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


@pytest.fixture
def house() -> Iterator[SpeechHouse]:
    with SpeechHouse() as house:
        yield house


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate of 127.0.0.1 in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + signed.public_bytes(pem))
    return path


def heard(backend: Remote, request: SpeechRequest = NOTES) -> list[AudioChunk]:
    with Engine(backend) as engine:
        return list(engine.speak(request))


def pcm(chunks: list[AudioChunk]) -> np.ndarray:
    return np.concatenate([chunk.pcm for chunk in chunks])


def codes(request: SpeechRequest) -> list[int]:
    return [sentence_code(one.text) for one in Tone().plan(request).sentences]


def said(text: str) -> SpeechRequest:
    return SpeechRequest((Turn(text),))


def failure(backend: Remote, request: SpeechRequest | None = None) -> EngineError:
    with pytest.raises(EngineError) as caught:
        heard(backend, request or said("Hello there."))
    return caught.value


# speaking ---------------------------------------------------------------------------------------


def test_each_sentence_is_heard_once_and_in_order(house: SpeechHouse):
    chunks = heard(Remote(house.url, voice="nova"))

    assert decode(pcm(chunks)) == codes(NOTES)
    assert [one["input"] for one in house.asked] == [
        "The team agreed, after all.",
        "Priya sends the budget of $48,500.",
        "大家同意推迟发布。",
        "好。",
    ]
    assert house.asked[0] == {
        "model": "tts-1", "input": "The team agreed, after all.", "voice": "nova",
        "response_format": "pcm", "stream": True, "stream_format": "audio",
    }  # fmt: skip


def test_chunks_are_marked_and_words_lie_inside_their_sentence(house: SpeechHouse):
    chunks = heard(Remote(house.url, voice="nova"))

    for seg in range(4):
        own = [chunk for chunk in chunks if chunk.seg == seg]
        assert [c.first for c in own] == [True] + [False] * (len(own) - 1)
        assert [c.last for c in own] == [False] * (len(own) - 1) + [True]
        assert [bool(c.words) for c in own] == [c.first for c in own]
        times = [t for word in own[0].words for t in (word.start_ms, word.end_ms)]
        assert times == sorted(times) and own[0].quality == "estimate"
    pauses = [(chunk.seg, chunk.pause_ms) for chunk in chunks if chunk.pause_ms]
    assert pauses == [(2, 500)]
    (third,) = [chunk for chunk in chunks if chunk.seg == 2 and chunk.first]
    assert not third.pcm[: SAMPLE_RATE_HZ // 2].any()
    assert third.pcm[SAMPLE_RATE_HZ // 2 :].any()


def test_a_comma_takes_time_between_words(house: SpeechHouse):
    words = heard(Remote(house.url, voice="nova"))[0].words
    gaps = [b.start_ms - a.end_ms for a, b in pairwise(words)]
    turn = NOTES.turns[0].text

    assert [word.text for word in words] == ["The", "team", "agreed", "after", "all"]
    assert [turn[slice(*word.span)] for word in words] == [word.text for word in words]
    assert gaps.index(max(gaps)) == 2


def test_sound_is_handed_on_before_the_server_has_finished(house: SpeechHouse):
    house.next.append(house.begins)
    with Engine(Remote(house.url, voice="nova")) as engine:
        stream = engine.speak(said("Hello there."))
        first = next(stream)
        was_waiting = not house.go.is_set()
        house.go.set()
        rest = list(stream)

    assert was_waiting and first.first and not first.last and 0 < len(first.pcm) <= 4_800
    assert decode(pcm([first, *rest])) == [sentence_code("Hello there.")]


def test_many_are_spoken_at_once_while_one_waits(house: SpeechHouse):
    house.next.append(house.waits)
    with Engine(Remote(house.url, voice="nova", slots=3)) as engine:
        slow = engine.submit(said("Slow one."))
        while not house.asked:
            time.sleep(0.01)
        quick = [engine.submit(said(text)) for text in ("Quick one.", "Quick two.")]
        done = [decode(pcm(list(utterance))) for utterance in quick]
        house.go.set()
        last = decode(pcm(list(slow)))

    assert done == [[sentence_code("Quick one.")], [sentence_code("Quick two.")]]
    assert last == [sentence_code("Slow one.")]


def test_a_request_goes_on_at_the_sentence_it_is_told(house: SpeechHouse):
    request = SpeechRequest(NOTES.turns, first_seg=2)

    assert decode(pcm(heard(Remote(house.url, voice="nova"), request))) == codes(NOTES)[2:]


@pytest.mark.parametrize("media_type", ["audio/pcm;rate=22050", "application/octet-stream"])
def test_another_rate_has_no_seams(house: SpeechHouse, media_type: str):
    t = np.arange(2 * 22_050) / 22_050
    sine = (9_000 * np.sin(2 * np.pi * 440 * t)).astype("<i2").tobytes()

    async def answer(request: Request, body: dict[str, Any]) -> Response:
        return StreamingResponse(pieces(sine, 777), media_type=media_type)  # samples are torn

    house.next.append(answer)
    declared = {"rate_hz": 22_050} if "rate" not in media_type else {}
    sound = pcm(heard(Remote(house.url, voice="nova", **declared), said("A sine.")))
    ideal = 9_000 * np.sin(2 * np.pi * 440 * np.arange(len(sound)) / SAMPLE_RATE_HZ)

    assert len(sound) == 2 * SAMPLE_RATE_HZ
    assert np.abs(sound - ideal)[480:-480].max() < 4


def test_codes_survive_a_server_at_another_rate(house: SpeechHouse):
    async def faster(request: Request, body: dict[str, Any]) -> Response:
        sound = np.frombuffer(tones(body["input"]), np.int16)
        return Response(np.repeat(sound, 2).tobytes(), media_type="audio/pcm; rate=48000")

    house.next.extend([faster] * 4)

    assert decode(pcm(heard(Remote(house.url, voice="nova")))) == codes(NOTES)


# what is asked for --------------------------------------------------------------------------------


def test_speed_emotion_and_loudness_are_given_and_the_rest_is_reported(house: SpeechHouse):
    controls = Controls(rate=1.5, emotion="glad", gain_db=-6, pitch=1.1, manner="calm")
    request = SpeechRequest((Turn("行[hang2]长 said [hi](/h aɪ/).", controls=controls),))
    backend = Remote(house.url, voice="nova")
    sound = pcm(heard(backend, request))

    assert house.asked[0]["speed"] == 1.5
    assert house.asked[0]["instructions"] == "glad"
    assert house.asked[0]["input"] == "行长 said hi."
    assert np.abs(sound).max() == pytest.approx(9_000 * 10 ** (-6 / 20), rel=0.1)
    assert backend.plan(request).degraded == ("pitch", "manner", "readings")


def test_a_wanted_length_is_approached_by_speed(house: SpeechHouse):
    backend = Remote(house.url, voice="nova")
    natural_ms = sum(one.estimated_ms for one in backend.plan(NOTES).sentences)
    target_s = natural_ms / 1000 * 1.25 + 0.5  # 0.5 s is the pause
    plan = backend.plan(SpeechRequest(NOTES.turns, target_s=target_s))

    assert plan.degraded == ("target_s",)
    assert sum(s.estimated_ms for s in plan.sentences) == pytest.approx(natural_ms * 1.25, rel=0.01)
    with pytest.raises(BadRequest, match="shorter than the pauses"):
        backend.plan(SpeechRequest(NOTES.turns, target_s=0.4))


@pytest.mark.parametrize("message", ["Unknown parameter: 'stream'", "Speed ... when streaming"])
def test_a_server_that_refuses_to_stream_is_asked_without(house: SpeechHouse, message: str):
    house.next.append(answers(400, {"error": {"message": message}}))

    assert decode(pcm(heard(Remote(house.url, voice="nova")))) == codes(NOTES)
    assert ["stream" in one for one in house.asked] == [True, False, False, False, False]


def test_the_voice_goes_by_language(house: SpeechHouse):
    heard(Remote(house.url, voice="en=nova, zh=zf_xiaoxiao"))

    assert [one["voice"] for one in house.asked] == ["nova", "nova", "zf_xiaoxiao", "zf_xiaoxiao"]
    assert house.lists == 0


def test_without_a_named_voice_the_servers_first_fitting_one_speaks(house: SpeechHouse):
    heard(backend := Remote(house.url))

    assert [one["voice"] for one in house.asked] == ["nova", "nova", "zf_xiaoxiao", "zf_xiaoxiao"]
    assert house.lists == 1
    assert [(v.id, v.name, v.lang) for v in backend.voices()] == [
        ("nova", "nova", ""), ("zf_xiaoxiao", "zf_xiaoxiao", "zh"), ("ann", "Ann", ""),
    ]  # fmt: skip


def test_an_unknown_voice_names_the_nearest(house: SpeechHouse):
    with pytest.raises(UnknownVoice, match=r"no voice 'nowa' at .*nova"):
        Remote(house.url).plan(SpeechRequest((Turn("Hello.", voice="nowa"),)))


@pytest.mark.parametrize("voices", [None, {"voices": []}, "nonsense"])
def test_a_server_without_a_list_needs_a_named_voice(house: SpeechHouse, voices: object):
    house.voices = voices
    anything = SpeechRequest((Turn("Hello.", voice="alloy"),))

    with pytest.raises(UnknownVoice, match="NOTECAST_REMOTE_VOICE"):
        Remote(house.url).plan(said("Hello."))
    assert Remote(house.url).plan(anything).sentences[0].voice == "alloy"


def test_named_voices_need_no_server():
    backend = Remote("http://127.0.0.1:9", voice={"en": "nova"})

    assert [voice.id for voice in backend.voices()] == ["nova"]
    assert backend.plan(said("Hello.")) == backend.plan(said("Hello."))


def test_voices_are_read_as_operators_write_them():
    assert read_voices("") == {}
    assert read_voices(" nova ") == {"": "nova"}
    assert read_voices("en=a,zh=b") == {"en": "a", "zh": "b"}
    with pytest.raises(BadRequest, match="en=af_heart"):
        read_voices("en=a,b")


def test_the_build_changes_with_what_changes_the_sound():
    def build(**options: Any) -> str:
        return Remote("http://h:1", **options).info().build

    assert len({build(), build(model="x"), build(voice="x"), build(rate_hz=16_000)}) == 4
    assert build(api_key="a") == build(api_key="b", slots=9)


# errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (answers(401, {"error": {"message": "bad key"}}), EngineFailed, "401: bad key.*remote_key"),
        (answers(404, {"detail": "no model x"}), EngineFailed, "404: no model x.*remote_model"),
        (answers(400, {"error": "too long"}), BadRequest, "refuses the request .400: too long"),
        (answers(422, {"detail": [{"msg": "no voice"}]}), BadRequest, "422: no voice"),
        (answers(429, {"message": "slow down"}), EngineOverloaded, "429: slow down"),
        (answers(307, {}, location="http://x"), EngineFailed, "redirects to http://x"),
        (answers(200, {"error": "no pcm"}), EngineFailed, "application/json.*: no pcm; it must"),
        (sends(b"RIFF" + b"x" * 96, "audio/wav"), EngineFailed, "audio/wav instead of audio/pcm"),
        (sends(b"RIFF" + b"x" * 96, "audio/pcm"), EngineFailed, "sound file"),
        (sends(b"x" * 96, "audio/pcm;rate=11"), EngineFailed, "rate=11; mono of 8000"),
        (sends(b"x" * 96, "audio/pcm;channels=2"), EngineFailed, "mono"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_the_server_said_and_what_helps(
    house: SpeechHouse, answer: Answer, kind: type[EngineError], text: str
):
    house.next.append(answer)
    with pytest.raises(kind, match=text):
        heard(Remote(house.url, voice="nova"), said("Hello."))

    assert len(house.asked) == 1, "asking again would not help"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (answers(503, {"detail": "loading"}), "503: loading.*its own log"),
        (answers(500, {}), "failed .500"),
        (sends(b"", "audio/pcm"), "sent no sound"),
    ],
)
def test_what_may_pass_is_asked_twice(house: SpeechHouse, answer: Answer, text: str):
    house.next.append(answer)
    assert decode(pcm(heard(Remote(house.url, voice="nova")))) == codes(NOTES)

    house.asked.clear()
    house.next.extend([answer, answer])
    with pytest.raises(EngineFailed, match=text):
        heard(Remote(house.url, voice="nova"), said("Hello."))
    assert len(house.asked) == 2


def test_a_silent_server_is_asked_twice(house: SpeechHouse):
    house.next.extend([house.waits, house.waits])
    error = failure(Remote(house.url, voice="nova", first_byte_s=0.2))

    assert isinstance(error, EngineFailed) and "sent no sound for 0.2 s" in str(error)
    assert len(house.asked) == 2


def test_a_server_that_falls_silent_is_not_asked_again(house: SpeechHouse):
    house.next.append(house.begins)
    with Engine(Remote(house.url, voice="nova", between_s=0.2)) as engine:
        stream = engine.speak(said("Hello there."))
        first = next(stream)
        with pytest.raises(EngineFailed, match=r"sent no sound for 0\.2 s"):
            list(stream)

    assert 0 < len(first.pcm) <= 4_800
    assert len(house.asked) == 1, "half of the sentence has been heard"


@pytest.mark.parametrize("way", ["chunked", "length", "half a sample"])
def test_a_body_that_is_cut_is_an_error(house: SpeechHouse, way: str):
    short = sends(b"\1\0" * 4_800, "audio/pcm", **{"content-length": "20000"})
    odd = sends(b"\1\0" * 4_800 + b"\1", "audio/pcm")
    ways: dict[str, Answer] = {
        "chunked": house.breaks_off, "length": short, "half a sample": odd,
    }  # fmt: skip
    house.next.append(ways[way])
    with Engine(Remote(house.url, voice="nova")) as engine:
        stream = engine.speak(said("Hello there."))
        assert len(next(stream).pcm) > 0
        with pytest.raises(EngineFailed, match="broke off in the middle of the sound"):
            list(stream)

    assert len(house.asked) == 1


def test_nobody_there_and_no_such_host_are_told():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    refused = failure(Remote(f"http://127.0.0.1:{port}", voice="nova"))
    unknown = failure(Remote("http://speech.invalid", voice="nova"))

    assert f"nobody listens at http://127.0.0.1:{port}/v1" in str(refused)
    assert "no host 'speech.invalid'" in str(unknown)


def test_tls_to_a_server_without_is_told(house: SpeechHouse):
    error = failure(Remote(house.url.replace("http:", "https:"), voice="nova"))

    assert "does not speak TLS" in str(error)


def test_a_certificate_nobody_vouches_for_is_told(certificate: Path):
    with SpeechHouse(certificate) as house:
        error = failure(Remote(house.url, voice="nova"))

    assert "cannot be trusted" in str(error) and "its certificate" in str(error)
    assert house.asked == []


def test_tls_speaks_and_is_cut_like_plain_http(certificate: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with SpeechHouse(certificate) as house, Engine(Remote(house.url, voice="nova")) as engine:
        spoken = decode(pcm(list(engine.speak(NOTES))))
        house.next.extend([house.begins, house.waits])
        for _ in range(2):
            house.gone.clear()
            asked = len(house.asked)
            utterance = engine.submit(said("Hello there."))
            while len(house.asked) == asked:
                time.sleep(0.01)
            utterance.cancel()
            assert house.gone.wait(10)

    assert spoken == codes(NOTES)


def test_a_server_that_takes_no_connections_is_told():
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        error = failure(Remote(url, voice="nova", connect_s=0.2))
        for one in waiting:
            one.close()

    assert "did not take the connection in 0.2 s" in str(error)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("localhost:8880", "looks like http://host:8880"),
        ("ftp://host", "looks like"),
        ("http://host:port", "looks like"),
        ("http://ann:hunter2@host", "without user, password"),
        ("ann:hunter2@host", "looks like"),
        ("http://host/v1?key=hunter2", "without user"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused_without_repeating_secrets(url: str, text: str):
    with pytest.raises(BadRequest, match=text) as caught:
        Remote(url)

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/audio/speech"])
def test_an_address_may_be_written_in_full_or_not(house: SpeechHouse, path: str):
    assert len(heard(Remote(house.url + path, voice="nova"), said("Hello."))) > 0


def test_options_out_of_range_are_refused():
    for options in ({"slots": 0}, {"rate_hz": 1}, {"first_byte_s": 0}, {"api_key": "a\nb"}):
        with pytest.raises(BadRequest):
            make_backend("remote", url="http://host", **options)


def test_the_key_is_sent_and_never_shown(house: SpeechHouse, caplog: pytest.LogCaptureFixture):
    backend = make_backend("remote", url=house.url, api_key=KEY, voice="nova")
    refusal = answers(503, {"error": {"message": f"not for {KEY}\n at all"}})
    house.next.extend([refusal, refusal])
    with caplog.at_level(logging.DEBUG):
        error = failure(backend)  # type: ignore[arg-type]

    assert house.headers["authorization"] == f"Bearer {KEY}"
    assert "503: not for *** at all" in str(error)
    assert KEY not in caplog.text + repr(backend) + repr(vars(backend)) + repr(error)


# going away ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before the first byte", "in the middle"])
def test_a_cancel_closes_the_connection(house: SpeechHouse, when: str):
    house.next.append(house.begins if when == "in the middle" else house.waits)
    with Engine(Remote(house.url, voice="nova")) as engine:
        utterance = engine.submit(said("Hello there. And more."))
        if when == "in the middle":
            next(utterance)
        while not house.asked:
            time.sleep(0.01)
        utterance.cancel()
        assert house.gone.wait(10)
        with pytest.raises(EngineStopped):
            list(utterance)
        again = decode(pcm(list(engine.speak(said("Next.")))))

    assert again == [sentence_code("Next.")]
    assert [one["input"] for one in house.asked] == ["Hello there.", "Next."]


def test_closing_the_engine_ends_every_call(house: SpeechHouse):
    house.next.append(house.waits)
    with Engine(Remote(house.url, voice="nova")) as engine:
        utterance = engine.submit(said("Hello there."))
        while not house.asked:
            time.sleep(0.01)

    with pytest.raises(EngineStopped):
        list(utterance)
    assert not [t for t in threading.enumerate() if t.name == "remote-speech"]
    assert house.gone.wait(10)
