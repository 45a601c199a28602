"""A client of OpenAI-shaped speech servers: `POST /v1/audio/speech`, `GET /v1/audio/voices`.

Each call has a connection of its own on `http.client`: it must be closable from another thread at
any moment, also while the server has not answered yet, and it waits differently long for the
connection, for the first sound and between chunks.

What the servers add to OpenAI's shape: vLLM-Omni streams only when told to (`stream`, and since it
knows server-sent events `stream_format` too) and then refuses `speed`; others refuse fields they do
not know. So both fields are sent, and whoever objects to them is asked again without.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from engine.base import SAMPLE_RATE_HZ, Pcm
from engine.errors import BadRequest, EngineError, EngineFailed, EngineOverloaded, EngineStopped
from engine.resample import HIGHEST_HZ, LOWEST_HZ, StreamResampler

_PCM_TYPES = {"audio/pcm", "audio/x-pcm", "application/octet-stream"}
_CONTAINERS = (b"RIFF", b"OggS", b"fLaC", b"ID3")
_READ_BYTES = 16_384
_MESSAGE_BYTES, _LIST_BYTES = 65_536, 1 << 20
_MESSAGE_CHARS = 300
_LONGEST_S = 300  # of one sentence: a server that never ends must not fill the memory
_STREAMING = {"stream": True, "stream_format": "audio"}


class ServerUnavailable(EngineFailed):
    """A failure that may pass by itself: 5xx, a time-out, a connection that broke."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Time-outs in seconds: for a connection, for the first sound, between two chunks of it."""

    connect_s: float = 5.0
    first_byte_s: float = 30.0
    between_s: float = 15.0

    def __post_init__(self) -> None:
        if min(self.connect_s, self.first_byte_s, self.between_s) <= 0:
            raise BadRequest("time-outs are seconds above 0", field="engine")


@dataclass(frozen=True, slots=True)
class ListedVoice:
    """A voice as a server lists it; `lang` and `gender` are empty where it does not say."""

    id: str
    name: str
    lang: str
    gender: str


class SpeechServer:
    """A server's address, key and habits. Thread-safe.

    Args:
        url: `http://host:8880`, with or without `/v1`.
        key: sent as bearer; never part of a message, a repr or a log line.
        rate_hz: of its PCM, unless its Content-Type has a `rate`.
        waits: time-outs.

    Raises:
        BadRequest: the address, the key or the rate cannot be used.
    """

    def __init__(
        self, url: str, key: str = "", *, rate_hz: int = SAMPLE_RATE_HZ, waits: Waits | None = None
    ) -> None:
        if not LOWEST_HZ <= rate_hz <= HIGHEST_HZ:
            raise BadRequest(
                f"rate_hz is {rate_hz}; it goes from {LOWEST_HZ} to {HIGHEST_HZ}", field="rate_hz"
            )
        self._key = key.strip()
        if not re.fullmatch(r"[\x21-\x7e]*", self._key):
            raise BadRequest(
                "the speech server's key has characters that no header can carry", field="api_key"
            )
        self.url, self.host, self.port, self.path = _split(url)
        self.is_secure = self.url.startswith("https:")
        self.rate_hz = rate_hz
        self.waits = waits or Waits()
        self._unstreamed: set[bool] = set()  # refuses to stream, with and without `speed`

    def __repr__(self) -> str:
        return f"SpeechServer({self.url!r})"

    def connection(self) -> http.client.HTTPConnection:
        """A new connection, not opened yet."""
        wait_s = self.waits.connect_s
        if self.is_secure:
            trust = ssl.create_default_context()
            return http.client.HTTPSConnection(self.host, self.port, timeout=wait_s, context=trust)
        return http.client.HTTPConnection(self.host, self.port, timeout=wait_s)

    @property
    def headers(self) -> dict[str, str]:
        """What every call sends."""
        bearer = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return {"Connection": "close", "Content-Type": "application/json", **bearer}

    def speech(self, wish: Mapping[str, object]) -> Speech:
        """A call that has not been made yet.

        Args:
            wish: `model`, `input`, `voice` and, if wanted, `speed` and `instructions`.
        """
        return Speech(self, wish)

    def voices(self) -> list[ListedVoice] | None:
        """The server's voices; None where it has no such list.

        Raises:
            EngineError: nobody answers, or the key is refused.
        """
        call = Call(self)
        with (
            call.explaining("list of voices"),
            call.answer("GET", f"{self.path}/audio/voices") as response,
        ):
            if response.status in (404, 405, 501):
                return None
            if response.status != 200:
                raise self.refusal(response)
            return _listed(response.read(_LIST_BYTES))

    def refusal(self, response: http.client.HTTPResponse) -> EngineError:
        """The error behind a status that is not 200."""
        status = response.status
        said = f"{status}: {self._said(response)}"
        where = f"the speech server at {self.url}"
        if status in (401, 403):
            return EngineFailed(
                f"{where} refuses the key ({said}); give a valid one as remote_key "
                "(NOTECAST_REMOTE_KEY)"
            )
        if status == 404:
            return EngineFailed(
                f"{where} has no such address or model ({said}); check remote_url and remote_model"
            )
        if 300 <= status < 400:
            goal = response.headers.get("Location", "another address")
            return EngineFailed(f"{where} redirects to {goal}; give that address as remote_url")
        if status == 429:
            return EngineOverloaded(f"{where} limits requests ({said}); try again later")
        if status >= 500 or status == 408:
            return ServerUnavailable(f"{where} failed ({said}); its own log says why")
        field = "stream" if "stream" in said.lower() else "text"
        return BadRequest(f"{where} refuses the request ({said})", field=field)

    def _said(self, response: http.client.HTTPResponse) -> str:
        """What the server says about an error, in one line, without our key."""
        with suppress(OSError, http.client.HTTPException):
            if message := _message(response.read(_MESSAGE_BYTES)):
                return self.clean(message)
        return response.reason or "no reason given"

    def clean(self, message: str) -> str:
        """One line of bounded length without the key."""
        if self._key:
            message = message.replace(self._key, "***")
        return " ".join(message.split())[:_MESSAGE_CHARS]

    def streams(self, wish: Mapping[str, object]) -> bool:
        """Whether to ask for streaming."""
        return ("speed" in wish) not in self._unstreamed

    def do_not_stream(self, wish: Mapping[str, object]) -> None:
        """Remember that requests of this kind are refused with streaming."""
        self._unstreamed.add("speed" in wish)


class Call:
    """One request on a connection of its own; `close` may come from any thread."""

    def __init__(self, server: SpeechServer) -> None:
        self._server = server
        self._socket: socket.socket | None = None
        self._wait_s = server.waits.connect_s
        self._closed = False

    @contextmanager
    def answer(
        self, method: str, path: str, body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Connect, send and wait for the head of the answer; closed at the end."""
        with closing(self._server.connection()) as connection:
            connection.connect()
            # Ours: the connection may forget its socket once the head of the answer is there.
            self._socket = connection.sock
            if self._closed:  # while it connected
                raise ConnectionAbortedError
            self.wait_for(self._server.waits.first_byte_s)
            connection.request(method, path, body, self._server.headers)
            with closing(connection.getresponse()) as response:
                yield response

    def wait_for(self, seconds: float) -> None:
        """From now on, reading gives up after so long without a byte."""
        self._wait_s = seconds
        if self._socket is not None:
            self._socket.settimeout(seconds)

    def close(self) -> None:
        """Make whatever the calling thread waits for fail at once. Safe to repeat."""
        self._closed = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def explaining(self, what: str) -> Iterator[None]:
        """Turn what the network raises into sentences for people."""
        try:
            yield
        except EngineError:
            raise
        except (OSError, EOFError, http.client.HTTPException, ValueError) as error:
            if self._closed:
                raise EngineStopped("the call was cancelled") from error
            raise self._explain(error, what) from error

    def _explain(self, error: Exception, what: str) -> EngineError:
        server = self._server
        where = f"the speech server at {server.url}"
        if isinstance(error, TimeoutError):
            if self._socket is None:
                return ServerUnavailable(
                    f"{where} did not take the connection in {self._wait_s:g} s"
                )
            return ServerUnavailable(f"{where} sent no {what} for {self._wait_s:g} s")
        if isinstance(error, ConnectionRefusedError):
            return EngineFailed(f"nobody listens at {server.url}; is the speech server running?")
        if isinstance(error, socket.gaierror):
            return EngineFailed(f"there is no host {server.host!r}; check remote_url")
        if isinstance(error, ssl.SSLError):
            return EngineFailed(
                f"{where} cannot be trusted or does not speak TLS ({error.reason}); "
                "check remote_url and its certificate"
            )
        if isinstance(error, (http.client.IncompleteRead, EOFError)):
            return ServerUnavailable(f"{where} broke off in the middle of the {what}")
        if isinstance(error, OSError) and self._socket is None:
            return EngineFailed(f"{where} cannot be reached ({error.strerror}); check remote_url")
        return ServerUnavailable(f"{where} broke the connection ({type(error).__name__})")


class Speech(Call):
    """One text on its way to sound. Iterate over it once; `close` may come from any thread."""

    def __init__(self, server: SpeechServer, wish: Mapping[str, object]) -> None:
        super().__init__(server)
        self._wish = wish

    def __iter__(self) -> Iterator[Pcm]:
        """Sound at SAMPLE_RATE_HZ as it arrives, never empty pieces.

        Raises:
            ServerUnavailable: may pass by itself; other EngineErrors will not.
            EngineStopped: it was closed.
        """
        with self.explaining("sound"):
            if self._server.streams(self._wish):
                try:
                    yield from self._speak(_STREAMING)
                    return
                except BadRequest as error:
                    if error.field != "stream":
                        raise
            yield from self._speak({})
            self._server.do_not_stream(self._wish)

    def _speak(self, more: Mapping[str, object]) -> Iterator[Pcm]:
        """The sound of one POST."""
        body = {**self._wish, "response_format": "pcm", **more}
        path = f"{self._server.path}/audio/speech"
        with self.answer("POST", path, json.dumps(body).encode()) as response:
            if response.status != 200:
                raise self._server.refusal(response)
            yield from self._read(response)

    def _read(self, response: http.client.HTTPResponse) -> Iterator[Pcm]:
        rate_hz = self._rate_hz(response)
        resampler = None if rate_hz == SAMPLE_RATE_HZ else StreamResampler(rate_hz)
        missing, odd, samples = response.length, b"", 0
        while got := response.read1(_READ_BYTES):
            if not samples:
                self.wait_for(self._server.waits.between_s)
                self._check_start(odd + got)
            missing = None if missing is None else missing - len(got)
            got = odd + got
            whole = len(got) & ~1
            odd = got[whole:]
            pcm = np.frombuffer(got[:whole], "<i2")
            samples += len(pcm)
            if samples > _LONGEST_S * rate_hz:
                raise EngineFailed(
                    f"the speech server at {self._server.url} sent more than {_LONGEST_S} s of "
                    "sound for one sentence"
                )
            if len(ready := pcm if resampler is None else _to_pcm(resampler.push(pcm))):
                yield ready
        if missing or odd:
            raise EOFError
        if not samples:
            raise ServerUnavailable(f"the speech server at {self._server.url} sent no sound")
        if resampler and len(rest := _to_pcm(resampler.push(np.zeros(0), last=True))):
            yield rest

    def _rate_hz(self, response: http.client.HTTPResponse) -> int:
        """The rate of an answer, if it is PCM that we can use."""
        where = f"the speech server at {self._server.url}"
        kind = response.headers.get_content_type()
        if "Content-Type" in response.headers and kind not in _PCM_TYPES:
            said = _message(response.read(_MESSAGE_BYTES)) if kind.endswith("json") else ""
            said = f": {self._server.clean(said)}" if said else ""
            raise EngineFailed(
                f"{where} answers with {kind} instead of audio/pcm{said}; it must support "
                'response_format "pcm" (16-bit, little-endian, mono)'
            )
        rate, channels = (response.headers.get_param(name) for name in ("rate", "channels"))
        try:
            rate_hz = self._server.rate_hz if rate is None else int(str(rate))
            is_mono = channels is None or int(str(channels)) == 1
        except ValueError:
            rate_hz, is_mono = 0, False
        if not is_mono or not LOWEST_HZ <= rate_hz <= HIGHEST_HZ:
            raise EngineFailed(
                f"{where} answers with {self._server.clean(response.headers['Content-Type'])}; "
                f"mono of {LOWEST_HZ} to {HIGHEST_HZ} Hz is needed"
            )
        return rate_hz

    def _check_start(self, start: bytes) -> None:
        if start.startswith(_CONTAINERS):
            raise EngineFailed(
                f"the speech server at {self._server.url} sends a sound file where "
                'response_format "pcm" (samples without a header) was asked for'
            )


def _split(url: str) -> tuple[str, str, int | None, str]:
    """(base address, host, port, path up to /v1) of what an operator typed."""
    parts = urlsplit(url.strip())
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise BadRequest(
            f"remote_url is {url.rpartition('@')[2]!r}; it looks like http://host:8880",
            field="remote_url",
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise BadRequest(
            "remote_url is an address alone, without user, password, ? or #; "
            "a key goes into remote_key (NOTECAST_REMOTE_KEY)",
            field="remote_url",
        )
    path = parts.path.rstrip("/").removesuffix("/audio/speech")
    path = path if re.search(r"/v\d+$", path) else f"{path}/v1"
    return f"{parts.scheme}://{parts.netloc}{path}", parts.hostname, port, path


def _to_pcm(wave: np.ndarray[Any, np.dtype[np.float64]]) -> Pcm:
    return np.clip(np.round(wave), -32768, 32767).astype(np.int16)


def _message(body: bytes) -> str:
    """The sentence in an error's body, in the shapes that servers use."""
    text = body.decode("utf-8", "replace")
    try:
        found: Any = json.loads(text)
    except ValueError:
        return "" if text.lstrip().startswith("<") else text
    for name in ("error", "detail", "message", "msg"):
        if isinstance(found, list):
            found = found[0] if found else ""
        if isinstance(found, dict):
            found = found.get(name, found)
    return found if isinstance(found, str) else json.dumps(found)


def _listed(body: bytes) -> list[ListedVoice] | None:
    """Voices, listed by name or as objects with an id; None if it is neither."""
    try:
        found: Any = json.loads(body)
    except ValueError:
        return None
    if isinstance(found, dict):
        found = found.get("voices", found.get("data"))
    if not isinstance(found, list):
        return None
    voices = [_voice({"id": one} if isinstance(one, str) else one) for one in found]
    return [voice for voice in voices if voice is not None]


def _voice(one: Any) -> ListedVoice | None:
    def text(*names: str) -> str:
        return next((one[n] for n in names if isinstance(one.get(n), str)), "")

    if not isinstance(one, dict) or not (name := text("id", "voice_id", "name")):
        return None
    lang = text("lang", "language", "locale").replace("_", "-").partition("-")[0].lower()
    gender = text("gender").lower()
    return ListedVoice(name, text("name") or name, lang if len(lang) == 2 else "", gender)
