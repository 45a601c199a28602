"""A speech server of somebody else's as an engine: vLLM-Omni, Kokoro-FastAPI, OpenAI and others.

A request is cut here, sentence by sentence, and each sentence is one `POST /v1/audio/speech`. A
thread per call reads what comes and queues it; `step` only moves what is there, so a slow server
holds up nobody else. Where words begin is estimated: no server of this kind tells.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from engine.backends.speech_api import (
    ListedVoice,
    ServerUnavailable,
    Speech,
    SpeechServer,
    Waits,
)
from engine.base import (
    NEUTRAL,
    SAMPLE_RATE_HZ,
    AudioChunk,
    Backend,
    BackendInfo,
    Pcm,
    Plan,
    Sentence,
    SpeechRequest,
    Turn,
    Voice,
    WordTiming,
)
from engine.errors import BadRequest, EngineError, EngineFailed, UnknownVoice
from engine.text import HAN, KANA, PHONEME_NOTE, PINYIN_NOTE, detect_lang, split_sentences
from engine.utterance import Utterance

log = logging.getLogger(__name__)

_PATIENCE_S = 0.05  # longest wait of a step
_BACK_OFF_S = 0.5
_ASK_AGAIN_S = 30.0  # a list of voices that could not be had
_SPEEDS = (0.25, 4.0)  # what the field `speed` allows
# Kokoro's names begin with a language and a gender: zf_xiaoxiao
_KOKORO = re.compile(r"([abefhijpz])([fm])_\w+")
_KOKORO_LANGS = dict(
    zip("abefhijpz", ("en", "en", "es", "fr", "hi", "it", "ja", "pt", "zh"), strict=True)
)

# What fills the time of a sentence, in units of a Latin letter.
_TOKEN = re.compile(
    rf"(?P<wide>[{HAN}{KANA}])|(?P<digits>\d+(?:[.,:]\d+)*)"
    rf"|(?P<word>[^\W\d{HAN}{KANA}]+(?:['’\-][^\W\d{HAN}{KANA}]+)*)"
    r"|(?P<clause>[,;:，；：、—–…])|(?P<end>[.!?。！？｡])"
)
_WEIGHTS = {"wide": 3.4, "digits": 5.0, "word": 1.0, "clause": 4.0, "end": 3.0}
_WORDS = ("wide", "digits", "word")
_LETTER_MS = 65


@dataclass(frozen=True, slots=True)
class _Wish:
    """What is asked of the server for a sentence, and the factor on the samples that come."""

    fields: Mapping[str, object]
    gain: float


class Remote(Backend):
    """An OpenAI-shaped speech server.

    Args:
        url: `http://host:8880`, with or without `/v1`.
        api_key: sent as bearer, if there is one.
        model: the server's name for its model.
        voice: one voice for everything, or a voice for each language; empty: what the server lists.
        rate_hz: of the server's PCM, unless its Content-Type says.
        slots: requests in flight at the server.
        connect_s, first_byte_s, between_s: time-outs: for a connection, for the first sound of a
            sentence, between two chunks of it.

    Raises:
        BadRequest: an option cannot be used; the message says which.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        model: str = "tts-1",
        voice: str | Mapping[str, str] = "",
        rate_hz: int = SAMPLE_RATE_HZ,
        slots: int = 4,
        connect_s: float = 5.0,
        first_byte_s: float = 30.0,
        between_s: float = 15.0,
    ) -> None:
        if slots < 1:
            raise BadRequest("slots goes from 1", field="engine")
        waits = Waits(connect_s, first_byte_s, between_s)
        self._server = SpeechServer(url, api_key, rate_hz=rate_hz, waits=waits)
        self._model = model
        self._named = read_voices(voice) if isinstance(voice, str) else dict(voice)
        self._catalogue = _Catalogue(self._server)
        self._arrived = threading.Event()  # some call has news
        self._calls: set[_Call] = set()
        recipe = json.dumps([self._server.url, model, sorted(self._named.items()), rate_hz])
        build = hashlib.sha256(recipe.encode()).hexdigest()[:16]
        self._info = BackendInfo("remote", build, slots=slots, batch=slots)

    def __repr__(self) -> str:
        return f"Remote({self._server.url!r}, model={self._model!r})"

    def info(self) -> BackendInfo:
        return self._info

    def voices(self) -> list[Voice]:
        """The voices of the settings and those that the server lists; `lang` may be empty.

        Raises:
            EngineError: the settings name no voice and the server cannot be asked.
        """
        found = {id_: Voice(id_, id_, lang or _lang_of(id_)) for lang, id_ in self._named.items()}
        for one in self._listed():
            voice = Voice(one.id, one.name, one.lang or _lang_of(one.id), one.gender)
            found.setdefault(one.id, voice)
        return list(found.values())

    def default_voice(self, lang: str) -> str:
        """The voice named for `lang`, else the one for all, else the first that speaks it."""
        if named := self._named.get(lang) or self._named.get(""):
            return named
        voices = self.voices()
        fitting = [v.id for v in voices if v.lang == lang] + [v.id for v in voices if not v.lang]
        return (fitting or [v.id for v in voices] or [""])[0]

    def plan(self, request: SpeechRequest) -> Plan:
        """Cut a request; asks the server for its voices only if the settings leave one open."""
        drafts = list(self._drafts(request.turns))
        stretch = _stretch(drafts, request.target_s)
        sentences = tuple(self._sentence(seg, one, stretch) for seg, one in enumerate(drafts))
        return Plan(sentences, _degraded(request))

    def step(self, batch: Sequence[Utterance]) -> None:
        self._arrived.clear()  # before looking: what comes later ends the wait
        calls = [self._call(utterance) for utterance in batch]
        if not any(call.has_news for call in calls):
            self._arrived.wait(_PATIENCE_S)
        for utterance, call in zip(batch, calls, strict=True):
            if call.has_news:
                self._move(utterance, call)

    def reach(self) -> None:
        """Ask the server something, to see that it is there.

        Raises:
            EngineError: it is not, or refuses us; the message says what to mend.
        """
        self._server.voices()

    def forget(self, utterance: Utterance) -> None:
        if isinstance(utterance.state, _Spoken):
            if utterance.state.call is not None:
                utterance.state.call.close()
            utterance.state = None
        self._calls = {call for call in self._calls if call.is_alive()}

    def close(self) -> None:
        """Close every call; a server that does not even take the connection is left behind."""
        for call in self._calls:
            call.close()
        for call in self._calls:
            call.join(1.0)

    # planning ---------------------------------------------------------------------------------

    def _drafts(self, turns: Sequence[Turn]) -> Iterator[_Draft]:
        for index, turn in enumerate(turns):
            lang = detect_lang(turn.text) if turn.lang in ("", "auto") else turn.lang
            voice = self._voice(turn.voice, lang)
            pause_ms = turn.pause_before_ms
            for span in split_sentences(turn.text, lang):
                place = (span.start, span.end)
                yield _Draft(index, turn, span.text, place, voice, lang, pause_ms)
                pause_ms = 0

    def _sentence(self, seg: int, draft: _Draft, stretch: float) -> Sentence:
        controls = draft.turn.controls
        speed = round(float(np.clip(controls.rate * stretch, *_SPEEDS)), 3)
        fields: dict[str, object] = {
            "model": self._model,
            "input": _plain(draft.text),
            "voice": draft.voice,
        }
        if speed != 1:
            fields["speed"] = speed
        if controls.emotion:
            fields["instructions"] = controls.emotion
        return Sentence(
            seg=seg,
            turn=draft.index,
            text=draft.text,
            span=draft.span,
            voice=draft.voice,
            lang=draft.lang,
            pause_before_ms=draft.pause_ms,
            estimated_ms=max(1, round(_letters(draft.text) * _LETTER_MS / speed)),
            detail=_Wish(fields, 10 ** (controls.gain_db / 20)),
        )

    def _voice(self, name: str, lang: str) -> str:
        """A voice that the server has, as far as can be known."""
        if not name:
            if found := self.default_voice(lang):
                return found
            raise UnknownVoice(
                f"the speech server at {self._server.url} lists no voices; name one as "
                "remote_voice (NOTECAST_REMOTE_VOICE)",
                field="voice",
            )
        listed = [one.id for one in self._listed()]
        if name in self._named.values() or name in listed or not listed:
            return name  # without a list the server judges
        near = get_close_matches(name, listed, n=3, cutoff=0.0)
        raise UnknownVoice(
            f"no voice {name!r} at {self._server.url}; there are: {', '.join(near)}", field="voice"
        )

    def _listed(self) -> list[ListedVoice]:
        return self._catalogue.voices(must=not self._named)

    # speaking ---------------------------------------------------------------------------------

    def _call(self, utterance: Utterance) -> _Call:
        """The call for the sentence that the utterance is at."""
        if not isinstance(utterance.state, _Spoken):
            utterance.state = _Spoken()
        state = utterance.state
        if state.call is None:
            sentence = utterance.plan.sentences[utterance.next_seg]
            assert isinstance(sentence.detail, _Wish)
            state.call = _Call(self._server, sentence.detail, self._arrived)
            state.call.start()
            self._calls.add(state.call)
            state.samples = 0
        return state.call

    def _move(self, utterance: Utterance, call: _Call) -> None:
        """Hand on what has come."""
        state = utterance.state
        assert isinstance(state, _Spoken)
        sentence = utterance.plan.sentences[utterance.next_seg]
        pieces, ended = call.take()
        is_whole = ended and call.error is None
        if pieces or is_whole:
            utterance.emit(_chunk(sentence, state, pieces, last=is_whole))
        if not ended:
            return
        if call.error is not None:
            utterance.finish(call.error)
            return
        call.join()  # it has said its last
        self._calls.discard(call)
        state.learn(sentence)
        state.call = None
        utterance.next_seg += 1
        if utterance.next_seg >= len(utterance.plan.sentences):
            utterance.finish()


@dataclass(frozen=True, slots=True)
class _Draft:
    """A sentence before its length is known."""

    index: int
    turn: Turn
    text: str
    span: tuple[int, int]
    voice: str
    lang: str
    pause_ms: int


@dataclass(eq=False)
class _Spoken:
    """What is kept for an utterance: the call in flight, and how well lengths were guessed."""

    call: _Call | None = None
    samples: int = 0  # of the sentence at hand
    heard_ms: float = 0.0
    guessed_ms: float = 0.0

    def length_ms(self, sentence: Sentence) -> int:
        """How long a sentence is likely to be, judged by those before it."""
        if not self.guessed_ms:
            return sentence.estimated_ms
        return round(sentence.estimated_ms * self.heard_ms / self.guessed_ms)

    def learn(self, sentence: Sentence) -> None:
        self.heard_ms += self.samples * 1000 / SAMPLE_RATE_HZ
        self.guessed_ms += sentence.estimated_ms


class _Call(threading.Thread):
    """Reads one sentence from the server; asks a second time if nothing has come."""

    def __init__(self, server: SpeechServer, wish: _Wish, arrived: threading.Event) -> None:
        super().__init__(name="remote-speech", daemon=True)
        self.error: EngineError | None = None
        self._server, self._wish, self._arrived = server, wish, arrived
        self._pieces: deque[Pcm] = deque()
        self._speech: Speech | None = None
        self._ended = False
        self._closed = threading.Event()

    @property
    def has_news(self) -> bool:
        """Something to take."""
        return bool(self._pieces) or self._ended

    def take(self) -> tuple[list[Pcm], bool]:
        """What has come since the last time, and whether that was all."""
        ended = self._ended  # before looking: nothing is queued after it
        pieces = [self._pieces.popleft() for _ in range(len(self._pieces))]
        return pieces, ended

    def close(self) -> None:
        """Break the connection off, whatever it is at."""
        self._closed.set()
        if self._speech is not None:
            self._speech.close()

    def run(self) -> None:
        try:
            self._read()
        except EngineError as error:
            self.error = error
        except Exception as error:
            log.exception("reading from the speech server failed")
            self.error = EngineFailed(
                f"reading from the speech server failed ({type(error).__name__})"
            )
        finally:
            self._ended = True
            self._arrived.set()

    def _read(self) -> None:
        heard = False
        for is_last_try in (False, True):
            self._speech = speech = self._server.speech(self._wish.fields)
            if self._closed.is_set():
                return
            try:
                for pcm in speech:
                    heard = True
                    self._pieces.append(_louder(pcm, self._wish.gain))
                    self._arrived.set()
            except ServerUnavailable as error:
                if heard or is_last_try or self._closed.is_set():
                    raise
                log.warning("asking the speech server again: %s", error)
                self._closed.wait(_BACK_OFF_S)
            else:
                return


class _Catalogue:
    """What the server lists, asked for once; a failure is not asked about again for a while."""

    def __init__(self, server: SpeechServer) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._voices: list[ListedVoice] | None = None
        self._failed_at = float("-inf")

    def voices(self, *, must: bool) -> list[ListedVoice]:
        """The server's voices, none if it has no list.

        Raises:
            EngineError: it cannot be asked, and they `must` be known.
        """
        with self._lock:
            if self._voices is None and (must or time.monotonic() - self._failed_at > _ASK_AGAIN_S):
                try:
                    self._voices = self._server.voices() or []
                except EngineError as error:
                    self._failed_at = time.monotonic()
                    if must:
                        raise
                    log.warning("voices not listed: %s", error)
            return self._voices or []


def read_voices(text: str) -> dict[str, str]:
    """`nova`, or `en=af_heart,zh=zf_xiaoxiao` -> language (empty: all) to voice.

    Raises:
        BadRequest: it is neither.
    """
    if "=" not in text:
        return {"": text.strip()} if text.strip() else {}
    pairs = [part.partition("=") for part in text.split(",")]
    named = {lang.strip().lower(): voice.strip() for lang, _, voice in pairs}
    if not all(lang and voice for lang, voice in named.items()):
        raise BadRequest(
            f"remote_voice is {text!r}; it looks like nova, or en=af_heart,zh=zf_xiaoxiao",
            field="remote_voice",
        )
    return named


def _lang_of(voice: str) -> str:
    """By its name, if that is one of Kokoro's."""
    match = _KOKORO.fullmatch(voice)
    return _KOKORO_LANGS[match[1]] if match else ""


def _plain(text: str) -> str:
    """Without inline readings, which each server writes in its own way, if at all."""
    return PHONEME_NOTE.sub(r"\g<word>", PINYIN_NOTE.sub(r"\g<char>", text))


def _stretch(drafts: Sequence[_Draft], target_s: float | None) -> float:
    """Factor on `speed` that brings a request near its wanted length."""
    if target_s is None or not drafts:
        return 1.0
    speech_ms = target_s * 1000 - sum(draft.pause_ms for draft in drafts)
    if speech_ms <= 0:
        raise BadRequest("target_s is shorter than the pauses of this text", field="target_s")
    natural_ms = sum(_letters(d.text) * _LETTER_MS / d.turn.controls.rate for d in drafts)
    return max(natural_ms, 1.0) / speech_ms


def _degraded(request: SpeechRequest) -> tuple[str, ...]:
    """What was asked for and no such server can do, or not exactly."""
    controls = [turn.controls for turn in request.turns]
    asked = [
        name
        for name in ("pitch", "range", "manner")
        if any(getattr(one, name) != getattr(NEUTRAL, name) for one in controls)
    ]
    if any(_plain(turn.text) != turn.text for turn in request.turns):
        asked.append("readings")
    if request.target_s is not None:
        asked.append("target_s")
    return tuple(asked)


# Sound and words --------------------------------------------------------------------------------


def _louder(pcm: Pcm, gain: float) -> Pcm:
    if gain == 1:
        return pcm
    return np.clip(np.round(pcm * gain), -32768, 32767).astype(np.int16)


def _chunk(sentence: Sentence, state: _Spoken, pieces: Sequence[Pcm], *, last: bool) -> AudioChunk:
    """The next chunk of a sentence; an empty one if only its end was left to tell."""
    is_first = state.samples == 0
    state.samples += sum(map(len, pieces))
    pause_ms = sentence.pause_before_ms if is_first else 0
    silence = np.zeros(pause_ms * SAMPLE_RATE_HZ // 1000, np.int16)
    length_ms = state.samples * 1000 // SAMPLE_RATE_HZ if last else state.length_ms(sentence)
    return AudioChunk(
        seg=sentence.seg,
        pcm=np.concatenate([silence, *pieces]),
        first=is_first,
        last=last,
        pause_ms=pause_ms,
        words=_words(sentence, length_ms) if is_first else (),
        quality="estimate",
    )


def _weigh(text: str) -> Iterator[tuple[re.Match[str], float]]:
    """Words and pauses of a text with what each takes, in letters."""
    for match in _TOKEN.finditer(_blanked(text)):
        kind = match.lastgroup or ""
        letters = max(2, len(match[0])) if kind == "word" else 1
        if kind == "digits":
            letters = len(match[0])
        yield match, _WEIGHTS[kind] * letters


def _letters(text: str) -> float:
    return sum(weight for _, weight in _weigh(text))


def _words(sentence: Sentence, length_ms: int) -> tuple[WordTiming, ...]:
    """Words spread over a sentence by their letters and by the pauses that its marks make."""
    scale = length_ms / (_letters(sentence.text) or 1.0)
    timings, at, origin = [], 0.0, sentence.span[0]
    for match, weight in _weigh(sentence.text):
        start, at = at, at + weight
        if match.lastgroup in _WORDS:
            span = (origin + match.start(), origin + match.end())
            timings.append(WordTiming(match[0], int(start * scale), int(at * scale), span))
    return tuple(timings)


def _blanked(text: str) -> str:
    """Inline readings overwritten by spaces, so that they take no time and move nothing."""

    def keep(match: re.Match[str], name: str) -> str:
        start, end = match.start(name) - match.start(), match.end(name) - match.start()
        return " " * start + match[name] + " " * (len(match[0]) - end)

    text = PINYIN_NOTE.sub(lambda m: keep(m, "char"), text)
    return PHONEME_NOTE.sub(lambda m: keep(m, "word"), text)
