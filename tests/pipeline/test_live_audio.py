"""Endless sound over HTTP, with clients that know nothing of us."""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from urllib3.exceptions import ProtocolError

from engine.backends.tone import decode
from pipeline import audio, links
from pipeline.errors import DatabaseUnavailable
from streaming.frames import TICKS_PER_S
from streaming.session import LiveSession
from tests.pipeline.narrator import CODES, SENTENCES, Narrator, codes_in, without_echo
from tests.pipeline.studio import API_KEY, Studio, open_studio, wait_for

FORMS = ("ogg", "mp3", "wav")
needs_ffmpeg = pytest.mark.skipif(
    not shutil.which("ffmpeg"), reason="there is no ffmpeg on this machine"
)


@pytest.fixture
def studio(tmp_path: Path, sqlite_template: Path) -> Iterator[Studio]:
    with open_studio(tmp_path, sqlite_template, speaks=False) as studio:
        yield studio


@pytest.fixture
def narrator(studio: Studio) -> Iterator[Narrator]:
    narrator = Narrator(studio)
    yield narrator
    narrator.close()


def test_listeners_hear_every_sentence_while_it_is_spoken_and_ever_after(
    tmp_path: Path, sqlite_template: Path
) -> None:
    with open_studio(tmp_path, sqlite_template, tone_pace="paced", tone_rtf=0.5) as studio:
        sid, token = studio.accept(" ".join(SENTENCES))
        path = f"/v1/live/{sid}/audio."

        live = [studio.get(f"{path}{form}?from=0", token=token).content for form in FORMS]
        studio.wait_state(sid, "done")
        stored = [studio.get(f"{path}{form}", token=token) for form in FORMS]

        assert [codes_in(body) for body in live] == [CODES] * 3
        assert [codes_in(answer.content) for answer in stored] == [CODES] * 3
        for form, answer in zip(FORMS, stored, strict=True):
            part = studio.get(f"{path}{form}", token=token, headers={"Range": "bytes=40-90000"})
            head = requests.head(
                f"{studio.url}{path}{form}",
                headers={"Authorization": f"Bearer {token}"},
                timeout=20,
            )
            assert (part.status_code, part.content) == (206, answer.content[40:90_001])
            assert head.headers["Content-Length"] == str(len(answer.content))
            assert head.headers["Accept-Ranges"] == "bytes"


@needs_ffmpeg
@pytest.mark.parametrize("form", FORMS)
def test_ffmpeg_plays_through_a_cut(studio: Studio, narrator: Narrator, form: str) -> None:
    narrator.say(0)
    ticket = studio.ticket(narrator.sid, narrator.token)
    url = f"{studio.url}/v1/live/{narrator.sid}/audio.{form}?from=0&ticket={ticket}"
    command = ["ffmpeg", "-v", "error", "-i", url, "-ar", "24000", "-ac", "1", "-f", "s16le", "-"]
    player = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    narrator.say(1, part=0.5)
    time.sleep(0.3)
    narrator.cut(1)
    narrator.say(1, 2, 3)
    narrator.session.end("done")
    sound, complaints = player.communicate(timeout=60)

    assert complaints == b"" or (form == "wav" and b"corrupt input packet" in complaints)
    heard = decode(np.frombuffer(sound, "<i2"))
    assert without_echo(heard) == CODES[:4]


def test_what_is_sent_after_a_cut_is_the_new_epoch_only(studio: Studio, narrator: Narrator) -> None:
    narrator.say(0, 1, 2, 3, 4, 5)  # twelve seconds, of which two are sent
    with studio.get(
        f"/v1/live/{narrator.sid}/audio.wav?from=0", token=narrator.token, stream=True
    ) as answer:
        parts = answer.iter_content(4096)
        body = next(parts)
        narrator.cut(2, "voice")
        narrator.say(2, 5)
        narrator.session.end("done")
        body += b"".join(parts)

    heard = codes_in(body)
    assert heard == [CODES[0], CODES[1], CODES[2], CODES[5]]


def test_without_a_wish_a_listener_begins_near_the_live_edge(
    studio: Studio, narrator: Narrator
) -> None:
    narrator.say(0, 1, 2, 3, 4)
    path = f"/v1/live/{narrator.sid}/audio.wav"
    with studio.get(path, token=narrator.token, stream=True) as answer:
        narrator.session.end("done")
        body = answer.content

    assert 1.9 < len(body) / 48_000 < 2.3


@pytest.mark.parametrize("form", FORMS)
def test_a_start_is_where_it_was_asked_for(studio: Studio, narrator: Narrator, form: str) -> None:
    narrator.say(0, 1)
    narrator.session.end("done")
    whole, later = (
        audio.decode(
            studio.get(
                f"/v1/live/{narrator.sid}/audio.{form}?from={ms}", token=narrator.token
            ).content
        )
        for ms in (0, 530)
    )

    missing = (len(whole) - len(later)) / 24_000
    assert missing == pytest.approx(0.53, abs={"ogg": 0.001, "wav": 0.001, "mp3": 0.2}[form])


def test_a_plain_http_1_0_reader_gets_the_bare_stream(studio: Studio, narrator: Narrator) -> None:
    narrator.say(0)
    ticket = studio.ticket(narrator.sid, narrator.token)
    host, _, port = studio.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 20) as sock:
        request = f"GET /v1/live/{narrator.sid}/audio.mp3?from=0&ticket={ticket} HTTP/1.0\r\n\r\n"
        sock.sendall(request.encode())
        narrator.say(1)
        narrator.session.end("done")
        answer = b""
        while part := sock.recv(65_536):
            answer += part

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200"))
    assert b"transfer-encoding" not in head.lower()
    assert codes_in(body) == CODES[:2]


def test_who_leaves_is_forgotten_at_once(studio: Studio, narrator: Narrator) -> None:
    narrator.say(0)
    path = f"/v1/live/{narrator.sid}/audio.ogg?from=0"
    with studio.get(path, token=narrator.token, stream=True) as answer:
        parts = answer.iter_content(100)  # held: a reader that is collected hangs up
        next(parts)
        assert len(listeners(studio, narrator.sid)) == 1
    wait_for("the listener to be gone", lambda: not listeners(studio, narrator.sid))


def test_a_slow_reader_slows_only_itself(studio: Studio, narrator: Narrator) -> None:
    minutes = 5
    for n in range(minutes * 30):
        narrator.session.silence(0, 2 * TICKS_PER_S, first=n == 0, last=n == minutes * 30 - 1)
    narrator.session.end("done")
    path = f"/v1/live/{narrator.sid}/audio.wav?from=0"
    with studio.get(path, token=narrator.token, stream=True) as answer:
        (slow,) = wait_for("a listener", lambda: listeners(studio, narrator.sid))
        seen = -1
        while seen != slow.index:  # until the buffers on the way are full
            seen = slow.index
            time.sleep(0.5)
        assert seen < 0.75 * minutes * 30

        body = sum(map(len, answer.iter_content(1 << 20)))

    assert body == 44 + minutes * 60 * 48_000


def listeners(studio: Studio, sid: str) -> list[Any]:
    channel = studio.gateway.hub._channels.get(sid)
    return list(channel.subscriptions) if channel else []


def test_a_session_that_waits_for_its_voice_is_waited_for(studio: Studio) -> None:
    sid, token = studio.accept(SENTENCES[0])
    bodies: list[bytes] = []

    def listen() -> None:
        bodies.append(studio.get(f"/v1/live/{sid}/audio.ogg?from=0", token=token).content)

    thread = threading.Thread(target=listen)
    thread.start()
    time.sleep(0.3)
    session = LiveSession.create(studio.services.chunks, sid, 1, meta={})
    session.silence(0, TICKS_PER_S, first=True, last=True)
    session.end("done")
    thread.join(20)

    assert len(audio.decode(bodies[0])) == 24_000


def test_a_revoked_link_ends_what_it_opened(studio: Studio, narrator: Narrator) -> None:
    narrator.say(0)
    path = f"/v1/live/{narrator.sid}/audio.ogg?from=0"
    with studio.get(path, token=narrator.token, stream=True) as answer:
        parts = answer.iter_content(100)
        next(parts)
        link = studio.gateway.links.verify(narrator.token).link
        links.revoke(studio.services.database, link)
        began = time.monotonic()

        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            list(parts)

        assert time.monotonic() - began < 8
    assert studio.get(path, token=narrator.token).status_code == 403


def test_a_kick_ends_sound_and_captions(studio: Studio, narrator: Narrator) -> None:
    narrator.say(0)
    path = f"/v1/live/{narrator.sid}/"
    with (
        studio.get(f"{path}audio.ogg?from=0", token=narrator.token, stream=True) as sound,
        studio.get(f"{path}events", token=narrator.token, stream=True) as captions,
    ):
        parts = [answer.iter_content(100) for answer in (sound, captions)]
        for part in parts:
            next(part)
        assert studio.gateway.hub.places() == {("opus", "http"): 1}
        assert studio.gateway.hub.census(0.0)[narrator.sid].listeners == 1
        studio.in_gateway(studio.gateway.kick(narrator.sid))

        for part in parts:
            with pytest.raises(requests.exceptions.ChunkedEncodingError):
                list(part)
    wait_for("their places to be free", lambda: not studio.gateway.guests)


def test_a_stream_goes_on_while_the_table_of_links_is_away(
    studio: Studio, narrator: Narrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrator.say(0)
    path = f"/v1/live/{narrator.sid}/audio.ogg?from=0"
    asked = threading.Event()

    def away(_link: str) -> None:
        asked.set()
        raise DatabaseUnavailable("SQL is away")

    with studio.get(path, token=narrator.token, stream=True) as answer:
        monkeypatch.setattr(studio.gateway.links, "_status", away)
        assert asked.wait(20)
        narrator.say(1)
        narrator.session.end("done")

        assert codes_in(answer.content) == CODES[:2]


def test_refusals_name_their_cause(studio: Studio, narrator: Narrator) -> None:
    path = f"/v1/live/{narrator.sid}/audio.mp3"
    _other, token = studio.accept("Another note.")

    found = [
        studio.get(path),
        studio.get(path, token="nc1.bad.token"),
        studio.get(path, token=token),
        studio.get(f"{path}?ticket=none"),
        studio.get("/v1/live/ses_nowhere/audio.mp3", token=API_KEY),
        studio.get(f"{path}?from=-5", token=narrator.token),
        studio.get(f"/v1/live/{narrator.sid}/audio.flac", token=narrator.token),
    ]

    assert [answer.status_code for answer in found] == [401, 401, 403, 401, 404, 422, 422]
    assert all(answer.json()["error"]["message"] for answer in found)


def test_a_session_whose_log_is_gone_names_its_recording(
    tmp_path: Path, sqlite_template: Path
) -> None:
    with open_studio(tmp_path, sqlite_template) as studio:
        sid, token = studio.accept(SENTENCES[0])
        studio.wait_state(sid, "done")
        studio.services.chunks.forget(sid)

        gone = studio.get(f"/v1/live/{sid}/audio.mp3?from=100", token=token)
        whole = studio.get(f"/v1/live/{sid}/audio.mp3", token=token)

        assert gone.status_code == 410
        error = gone.json()["error"]
        assert f"/episodes/{sid}.mp3?ticket=" in error["message"]
        assert error["url"] in error["message"]
        assert set(error) == {"code", "message", "url", "vtt", "chapters", "title", "lang"}
        assert codes_in(whole.content) == CODES[:1]


def test_a_wav_of_several_blocks_is_the_same_however_it_is_cut(
    tmp_path: Path, sqlite_template: Path
) -> None:
    text = " ".join(f"{sentence} And it goes on for a while." for sentence in SENTENCES * 2)
    with open_studio(tmp_path, sqlite_template) as studio:
        sid, token = studio.accept(text)
        studio.wait_state(sid, "done")
        path = f"/v1/live/{sid}/audio.wav"

        whole = studio.get(path, token=token).content
        cuts = [0, 44, 45, 100_001, 480_044, 480_045, 700_000, len(whole)]
        parts = [
            studio.get(path, token=token, headers={"Range": f"bytes={a}-{b - 1}"}).content
            for a, b in pairwise(cuts)
        ]
        stored = audio.decode(studio.get(f"/v1/live/{sid}/audio.ogg", token=token).content)

        pcm = audio.decode(whole)
        assert len(whole) > 2 * 480_000
        assert b"".join(parts) == whole
        assert len(pcm) == len(stored)
        assert np.abs(pcm.astype(int) - stored).max() < 200
        assert io.BytesIO(whole).read(4) == b"RIFF"


def test_a_server_that_stops_does_not_wait_for_endless_answers(
    studio: Studio, narrator: Narrator, caplog: pytest.LogCaptureFixture
) -> None:
    narrator.say(0)
    path = f"/v1/live/{narrator.sid}/audio.ogg?from=0"
    with studio.get(path, token=narrator.token, stream=True) as answer:
        assert answer.raw.read(4) == b"OggS"
        studio.close()
        with pytest.raises(ProtocolError):  # torn off, so that nobody takes it for the whole
            answer.raw.read()
    assert "graceful shutdown exceeded" not in caplog.text
