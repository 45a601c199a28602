"""Speech in OpenAI's shape, judged by OpenAI's own Python package and by our remote engine."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import requests

from engine.backends.remote import Remote
from engine.backends.tone import decode, sentence_code
from engine.base import SpeechRequest, Turn, Voice
from engine.engine import Engine
from pipeline import audio, leases, models, speech
from pipeline.settings import Settings
from pipeline.speech import Catalogue
from tests.pipeline.studio import API_KEY, Studio, open_studio, wait_for

TEXT = "First comes this. Then comes that. Alice: no, this is no speaker. Alice: nor is this."
CODES = [
    sentence_code(one)
    for one in (
        "First comes this.",
        "Then comes that.",
        "Alice: no, this is no speaker.",
        "Alice: nor is this.",
    )
]
FORMS = ("mp3", "opus", "aac", "flac", "wav", "pcm")


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[Studio]:
    directory = tmp_path_factory.mktemp("studio")
    with open_studio(directory, sqlite_template, reuse=False) as studio:
        yield studio


@pytest.fixture
def client(studio: Studio) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{studio.url}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client


def ask(studio: Studio, key: str = API_KEY, **body: Any) -> requests.Response:
    wish = {"model": "tts-1", "input": "Some words.", "voice": "alloy", **body}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return requests.post(
        f"{studio.url}/v1/audio/speech", json=wish, headers=headers, timeout=30, stream=True
    )


def samples(body: bytes, form: str) -> Any:
    return np.frombuffer(body, "<i2") if form == "pcm" else audio.decode(body)


@pytest.mark.parametrize("form", FORMS)
def test_the_openai_package_gets_each_format_word_for_word(
    client: openai.OpenAI, form: Any
) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="nova", input=TEXT, response_format=form
    ) as answer:
        body = b"".join(answer.iter_bytes())
        kind = answer.headers["content-type"]

    assert decode(samples(body, form)) == CODES
    assert kind.split(";")[0].split("/")[0] == "audio"


def test_samples_are_those_of_the_engine(client: openai.OpenAI) -> None:
    body = client.audio.speech.create(
        model="tts-1", voice="tone_a", input=TEXT, response_format="wav"
    ).content

    with wave.open(io.BytesIO(body)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24_000)
    pcm = np.frombuffer(body[44:], "<i2")
    quiet = pcm[np.abs(pcm) == 0]
    assert len(quiet) > 400  # Opus would have left a murmur in the gaps


def test_events_carry_the_same_sound_and_then_the_usage(studio: Studio) -> None:
    lines = list(ask(studio, input=TEXT, stream_format="sse", response_format="pcm").iter_lines())

    found = [json.loads(line.removeprefix(b"data: ")) for line in lines if line]
    *deltas, done = found
    body = b"".join(base64.b64decode(one["audio"]) for one in deltas)
    assert {one["type"] for one in deltas} == {"speech.audio.delta"}
    assert decode(np.frombuffer(body, "<i2")) == CODES
    assert done == {
        "type": "speech.audio.done",
        "usage": {
            "input_tokens": len(TEXT),
            "output_tokens": len(body) // 960,
            "total_tokens": len(TEXT) + len(body) // 960,
        },
    }


def test_speed_is_followed_as_far_as_the_engine_can(studio: Studio) -> None:
    answers = {speed: ask(studio, speed=speed, response_format="pcm") for speed in (1, 1.5, 4)}
    lengths = {speed: len(answer.content) for speed, answer in answers.items()}

    assert lengths[1] > lengths[1.5] > lengths[4]
    told = [answer.headers["x-notecast-speed"] for answer in answers.values()]
    assert told == ["1", "1.5", "2"]


def test_instructions_become_the_emotion_of_what_is_said(studio: Studio) -> None:
    answer = ask(studio, instructions="Speak like a tired pirate.", response_format="pcm")
    answer.content  # noqa: B018

    row = studio.house.row(answer.headers["x-notecast-session"])
    (segment,) = row.script["chapters"][0]["segments"]
    assert segment["emotion"] == "Speak like a tired pirate."
    assert row.asked_by.startswith("key:")


def test_the_speech_is_an_episode_like_any_other(studio: Studio) -> None:
    answer = ask(studio, input=TEXT, response_format="mp3")
    assert answer.content
    sid = answer.headers["x-notecast-session"]

    studio.wait_state(sid, "stored", "done", "written_back")

    assert studio.get(f"/v1/episodes/{sid}", token=API_KEY).json()["title"].startswith("First")


def test_what_was_spoken_before_is_given_at_once(tmp_path: Path, sqlite_template: Path) -> None:
    with open_studio(tmp_path, sqlite_template) as studio:
        first = ask(studio, input=TEXT, response_format="pcm")
        body = first.content
        studio.wait_state(first.headers["x-notecast-session"], "done")

        for form in FORMS:
            again = ask(studio, input=TEXT, response_format=form)
            assert decode(samples(again.content, form)) == CODES
            row = studio.house.row(again.headers["x-notecast-session"])
            assert row.first_audio_ms is None  # nobody spoke
        assert decode(np.frombuffer(body, "<i2")) == CODES


def test_a_client_that_goes_away_stops_the_speech(tmp_path: Path, sqlite_template: Path) -> None:
    text = " ".join(f"Sentence number {n} of very many." for n in range(200))
    with open_studio(tmp_path, sqlite_template, tone_pace="paced", tone_rtf=0.5) as studio:
        answer = ask(studio, input=text, response_format="pcm")
        next(answer.iter_content(1000))
        sid = answer.headers["x-notecast-session"]
        answer.close()

        row = studio.wait_state(sid, "cancelled")
        wait_for("the engine to be free", lambda: not studio.services.engine.in_flight)

        assert (row.segments_done or 0) < 20


def test_a_notecast_can_be_the_engine_of_another(studio: Studio) -> None:
    remote = Remote(studio.url, api_key=API_KEY, model="tts-1", voice="en=tone_b")
    with Engine(remote) as engine:
        listed = {voice.id for voice in engine.voices()}
        request = SpeechRequest(turns=(Turn("Hello over there. How are you?"),))
        chunks = list(engine.speak(request))

    pcm = np.concatenate([chunk.pcm for chunk in chunks])
    assert {"tone_a", "tone_b", "tone_c", "tone_d"} <= listed
    assert decode(pcm) == [sentence_code("Hello over there."), sentence_code("How are you?")]


def test_models_and_voices_are_listed(client: openai.OpenAI, studio: Studio) -> None:
    models = [one.id for one in client.models.list()]
    voices = studio.get("/v1/audio/voices", token=API_KEY).json()["voices"]

    assert {"tts-1", "tts-1-hd", "gpt-4o-mini-tts"} <= set(models)
    assert client.models.retrieve("tts-1").owned_by == "notecast"
    assert voices[0] == {"id": "tone_a", "name": "Tone at 220 Hz", "lang": "en", "gender": ""}


def test_a_listener_may_ask_for_voices_and_not_for_speech(studio: Studio) -> None:
    _sid, token = studio.accept("A note.")

    assert studio.get("/v1/audio/voices", token=token).status_code == 200
    assert ask(studio, token).status_code == 401


@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"voice": "nobody"}, 404, "voice", "voice_not_found"),
        ({"model": "gpt-9"}, 404, "model", "model_not_found"),
        ({"speed": 0.2}, 400, "speed", "invalid_value"),
        ({"speed": 4.1}, 400, "speed", "invalid_value"),
        ({"response_format": "ogg"}, 400, "response_format", "invalid_value"),
        ({"stream_format": "ws"}, 400, "stream_format", "invalid_value"),
        ({"input": ""}, 400, "input", "invalid_value"),
        ({"input": "x" * 65_537}, 400, "input", "string_above_max_length"),
        ({"input": None}, 400, "input", "invalid_value"),
        ({"instructions": "x" * 5000}, 400, "instructions", "invalid_value"),
    ],
)
def test_refusals_have_openais_shape(
    studio: Studio, change: dict[str, Any], status: int, param: str, code: str
) -> None:
    answer = ask(studio, **change)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_the_openai_package_raises_its_own_errors(studio: Studio, client: openai.OpenAI) -> None:
    stranger = openai.OpenAI(base_url=f"{studio.url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as refused:
        stranger.audio.speech.create(model="tts-1", voice="alloy", input="Words.")
    with pytest.raises(openai.NotFoundError):
        client.audio.speech.create(model="tts-1", voice="nobody", input="Words.")
    with pytest.raises(openai.BadRequestError):
        client.audio.speech.create(model="tts-1", voice="alloy", input="")

    assert refused.value.code == "invalid_api_key"


def test_bodies_that_are_no_wish_are_refused(studio: Studio) -> None:
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    url = f"{studio.url}/v1/audio/speech"

    broken = requests.post(url, b"{", headers=headers, timeout=20)
    large = requests.post(url, b" " * (1 << 20) + b"{}", headers=headers, timeout=20)

    assert (broken.status_code, "JSON" in broken.json()["error"]["message"]) == (400, True)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")


def test_fields_that_others_invented_are_passed_over(studio: Studio) -> None:
    answer = ask(studio, lang_code="a", stream=True, voice={"id": "tone_c"}, response_format="pcm")

    assert answer.status_code == 200
    assert answer.content


def test_without_a_worker_the_client_is_told_to_come_back(
    tmp_path: Path, sqlite_template: Path
) -> None:
    with open_studio(tmp_path, sqlite_template, speaks=False) as studio:
        answer = ask(studio)

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json()["error"]["type"] == "server_error"


def test_a_key_has_only_so_many_speeches_at_a_time(tmp_path: Path, sqlite_template: Path) -> None:
    text = " ".join(f"Sentence number {n} of many." for n in range(50))
    paced: dict[str, Any] = {"tone_pace": "paced", "tone_rtf": 0.5, "speech_running": 1}
    with open_studio(tmp_path, sqlite_template, **paced) as studio:
        first = ask(studio, input=text, response_format="pcm")
        parts = first.iter_content(100)
        next(parts)

        second = ask(studio)
        first.close()
        wait_for("a free place", lambda: ask(studio).status_code == 200)

    assert (second.status_code, second.headers["Retry-After"]) == (429, "1")
    assert second.json()["error"]["type"] == "rate_limit_error"


def test_a_speech_that_fails_before_its_first_sound_is_an_error(
    tmp_path: Path, sqlite_template: Path
) -> None:
    with open_studio(tmp_path, sqlite_template, tone_faults=True, attempts=1) as studio:
        answer = ask(studio, input="[[fail]] It cannot be said.")

    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "engine_failed"


def test_well_known_names_mean_the_same_voice_each_time_and_speak_the_language() -> None:
    catalogue = Catalogue(Settings(engine="tone"))
    catalogue._asked_at = float("inf")
    catalogue._voices = [
        Voice("af_nova", "Nova", "en", "female", "C"),
        Voice("af_heart", "Heart", "en", "female", "A"),
        Voice("am_echo", "Echo", "en", "male", "D"),
        Voice("zf_one", "One", "zh", "female", "B"),
        Voice("zf_two", "Two", "zh", "female", "A"),
        Voice("zm_one", "Three", "zh", "male", ""),
    ]

    def find(name: str, lang: str = "en") -> str | None:
        return catalogue.find(name, lang)

    assert (find("nova"), find("alloy"), find("echo"), find("onyx")) == (
        "af_nova",
        "af_heart",
        "am_echo",
        "am_echo",
    )
    assert (find("alloy", "zh"), find("coral", "zh"), find("verse", "zh")) == (
        "zf_two",
        "zf_one",
        "zm_one",
    )
    assert find("af_heart:0.6,zf_one:0.4") == "af_heart:0.6,zf_one:0.4"
    assert find("af_heart:0.6,nobody:0.4") is None
    assert find("nobody") is None
    assert all(find(name, lang) for name in speech.WELL_KNOWN for lang in ("en", "zh", "fr"))


def test_many_at_once_are_all_served(studio: Studio) -> None:
    async def all_of_them() -> list[bytes]:
        async with openai.AsyncOpenAI(
            base_url=f"{studio.url}/v1", api_key=API_KEY, max_retries=0
        ) as client:
            calls = [
                client.audio.speech.create(
                    model="tts-1", voice="alloy", input=f"Number {n}.", response_format="pcm"
                )
                for n in range(6)
            ]
            return [answer.content for answer in await asyncio.gather(*calls)]

    bodies = asyncio.run(all_of_them())

    heard = [decode(np.frombuffer(body, "<i2")) for body in bodies]
    assert heard == [[sentence_code(f"Number {n}.")] for n in range(6)]


def test_who_leaves_while_all_voices_are_busy_takes_the_speech_along(
    tmp_path: Path, sqlite_template: Path
) -> None:
    with open_studio(tmp_path, sqlite_template, speaks=False) as studio:
        leases.announce(
            studio.services.database, studio.house.worker, "ready", engine="tone", slots=1
        )
        with pytest.raises(requests.exceptions.ReadTimeout):
            requests.post(
                f"{studio.url}/v1/audio/speech",
                json={"model": "tts-1", "input": "Words.", "voice": "alloy"},
                headers={"Authorization": f"Bearer {API_KEY}"},
                timeout=0.7,
            )

        wait_for(
            "the speech to be cancelled",
            lambda: [row.state for row in studio.house.all(models.episode)] == ["cancelled"],
        )
