"""HLS of a session, as players read it."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.backends.tone import decode
from tests.pipeline.narrator import CODES, Narrator, codes_in
from tests.pipeline.studio import Studio, open_studio


@pytest.fixture
def studio(tmp_path: Path, sqlite_template: Path) -> Iterator[Studio]:
    with open_studio(tmp_path, sqlite_template, speaks=False) as studio:
        yield studio


@pytest.fixture
def narrator(studio: Studio) -> Iterator[Narrator]:
    narrator = Narrator(studio)
    yield narrator
    narrator.close()


def test_the_segments_of_a_list_are_the_whole_speech(studio: Studio, narrator: Narrator) -> None:
    narrator.say(0, 1, 2)
    narrator.session.end("done")
    path = f"/v1/live/{narrator.sid}/"
    listed = studio.get(f"{path}index.m3u8", token=narrator.token)

    names = [line for line in listed.text.splitlines() if not line.startswith("#")]
    parts = [studio.get(path + name, token=narrator.token) for name in names]

    sound = b"".join(re.sub(rb"^ID3.{70}", b"", part.content, flags=re.S) for part in parts)
    assert codes_in(sound) == CODES[:3]
    assert listed.headers["Content-Type"].startswith("application/vnd.apple.mpegurl")
    assert {part.headers["Cache-Control"] for part in parts} == {"public, max-age=86400, immutable"}
    assert listed.text.endswith("#EXT-X-ENDLIST\n")


def test_one_ticket_opens_the_list_and_its_segments_and_nothing_else(
    studio: Studio, narrator: Narrator
) -> None:
    narrator.say(0, 1)
    narrator.session.end("done")
    path = f"/v1/live/{narrator.sid}/"
    ticket = studio.ticket(narrator.sid, narrator.token)

    text = studio.get(f"{path}index.m3u8?ticket={ticket}").text
    name = next(line for line in text.splitlines() if not line.startswith("#"))

    assert studio.get(path + name).status_code == 200
    assert studio.get(path + name.partition("?")[0]).status_code == 401
    assert studio.get(f"{path}audio.mp3?ticket={ticket}").status_code == 401


def test_a_list_of_a_session_that_is_spoken_may_not_be_kept(
    studio: Studio, narrator: Narrator
) -> None:
    narrator.say(0, 1, 2)
    path = f"/v1/live/{narrator.sid}/"

    listed = studio.get(f"{path}index.m3u8", token=narrator.token)
    wrong = studio.get(f"{path}hls/7-5000.mp3", token=narrator.token)

    assert listed.headers["Cache-Control"] == "public, max-age=1"
    assert "#EXT-X-ENDLIST" not in listed.text
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="there is no ffmpeg on this machine")
def test_ffmpeg_follows_a_list_that_grows_through_a_cut(studio: Studio, narrator: Narrator) -> None:
    narrator.say(0, 1)
    ticket = studio.ticket(narrator.sid, narrator.token)
    url = f"{studio.url}/v1/live/{narrator.sid}/index.m3u8?ticket={ticket}"

    def go_on() -> None:
        time.sleep(1.0)
        narrator.say(2, part=0.4)
        narrator.cut(2)
        narrator.say(2, 3)
        narrator.session.end("done")

    teller = threading.Thread(target=go_on)
    teller.start()
    command = ["ffmpeg", "-v", "error", "-live_start_index", "0", "-i", url]
    command += ["-ar", "24000", "-ac", "1", "-f", "s16le", "-"]
    done = subprocess.run(command, capture_output=True, timeout=90)
    teller.join()

    assert decode(np.frombuffer(done.stdout, "<i2")) == CODES[:4]
    # going back to the start of a sentence is what a discontinuity is for
    assert [line for line in done.stderr.splitlines() if b"monoton" not in line] == []
