"""From a request to sentences with phonemes: which engine, which voice, which words.

No model runs here.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from engine.backends.kokoro import manners
from engine.backends.kokoro.durations import SENSIBLE
from engine.backends.kokoro.manners import Manner
from engine.backends.kokoro.voices import DEFAULTS, HIBARI, Mix, VoicePack
from engine.backends.kokoro.words import Line, Reading, lines_of, unknown_share
from engine.base import Plan, Sentence, SpeechRequest, Turn
from engine.errors import BadRequest, UnsupportedFeature, UnsupportedLanguage
from engine.text import HAN, Span, detect_lang, split_sentences

log = logging.getLogger(__name__)

MS_PER_TOKEN = 66  # mean over English and Chinese, pads included
PAD_MS = 500
UNKNOWN_SHARE = 0.02  # more unknown phonemes than this in a sentence is worth a warning

_HANZI = re.compile(f"[{HAN}]")

FRONT_ENDS = {"en": "english", "zh": "chinese", "ja": "japanese"} | dict.fromkeys(
    ("es", "fr", "it", "pt", "hi"), "espeak"
)

EXTRAS = {
    "japanese": ("ja", ("pyopenjtalk",)),
    "espeak": ("espeak", ("misaki", "phonemizer", "espeakng_loader")),
}


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who says a turn, the same from its first sentence to its last.

    Attributes:
        engine: chosen per speaker, never per sentence.
        id: as a caller may ask for it again.
        mix: Kokoro voices and their shares; empty for hibari.
        manner: as the controls of the turn have it.
    """

    engine: Literal["hibari", "kokoro"]
    id: str
    mix: Mix
    manner: Manner


@dataclass(frozen=True, slots=True)
class Prepared:
    """A sentence's `detail`: everything its sound is made from."""

    speaker: Speaker
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class _Cut:
    """A turn, cut, with the language of each sentence."""

    turn: Turn
    spans: tuple[Span, ...]
    langs: tuple[str, ...]


def plan(request: SpeechRequest, pack: VoicePack) -> Plan:
    """Cut, read and cast a request.

    Raises:
        BadRequest: unknown voice, a language or feature this engine lacks; the message names the
            cure.
    """
    cuts = [_cut(turn) for turn in request.turns]
    fast = _fits_hibari(cuts)
    sentences: list[Sentence] = []
    warnings: list[str] = []
    for index, cut in enumerate(cuts):
        speaker = _cast(cut, cuts, fast, pack)
        pause_ms = cut.turn.pause_before_ms
        for span, lang in zip(cut.spans, cut.langs, strict=True):
            reading = _read(
                span, lang, british=speaker.engine == "kokoro" and pack.is_british(speaker.mix)
            )
            lines = tuple(lines_of(reading.words))
            warnings += _complaints(reading)
            if not lines:
                continue  # nothing in it can be said; if it held letters, a warning names them
            sentences.append(
                Sentence(
                    seg=len(sentences),
                    turn=index,
                    text=span.text.strip(),
                    span=(span.start, span.end),
                    voice=speaker.id,
                    lang=lang,
                    pause_before_ms=pause_ms,
                    estimated_ms=_estimate_ms(lines, speaker.manner.rate),
                    detail=Prepared(speaker, lines),
                )
            )
            pause_ms = 0
    warnings += _length_warning(request, sentences)
    return Plan(tuple(sentences), tuple(_degraded(cuts, sentences)), tuple(warnings))


def _degraded(cuts: Sequence[_Cut], sentences: Sequence[Sentence]) -> Iterator[str]:
    """What was asked for and is only met nearly."""
    if any(cut.turn.controls.emotion for cut in cuts):
        yield "emotion"
    manners_of_hibari = {cuts[one.turn].turn.controls for one in sentences if one.voice == HIBARI}
    if any(manners.manner_of(controls).bends_pitch for controls in manners_of_hibari):
        yield "manner"


def front_end(lang: str) -> ModuleType:
    """The module that reads a language; loads its dictionaries at the first reading.

    Raises:
        UnsupportedLanguage: names the extra to install, or the languages there are.
    """
    name = FRONT_ENDS.get(lang)
    if name is None:
        raise UnsupportedLanguage(
            f"the embedded voice does not speak {lang!r}; it speaks {', '.join(FRONT_ENDS)}",
            field="lang",
        )
    extra, packages = EXTRAS.get(name, ("", ()))
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UnsupportedLanguage(
            f"{lang!r} needs {' and '.join(missing)}: pip install 'notecast[{extra}]'", field="lang"
        )
    return importlib.import_module(f"engine.backends.kokoro.{name}")


def warm(lang: str) -> None:
    """Load what reading a language needs."""
    _read(Span(0, 2, "一二" if lang in ("zh", "ja") else "on"), lang, british=False)


def _cut(turn: Turn) -> _Cut:
    whole = detect_lang(turn.text) if turn.lang in ("", "auto") else turn.lang.split("-")[0].lower()
    front_end(whole)  # an unknown language is refused even for a text of one number
    spans = tuple(span for span in split_sentences(turn.text, whole) if span.text.strip())
    if turn.lang not in ("", "auto"):
        return _Cut(turn, spans, (whole,) * len(spans))
    return _Cut(turn, spans, tuple(_sentence_lang(span.text, whole) for span in spans))


def _sentence_lang(text: str, whole: str) -> str:
    """Kanji alone stay Japanese in a Japanese text; an English sentence is read as English."""
    own = detect_lang(text)
    return whole if (whole, own) == ("ja", "zh") or own not in FRONT_ENDS else own


def _cast(cut: _Cut, cuts: Sequence[_Cut], fast: bool, pack: VoicePack) -> Speaker:
    turn = cut.turn
    if "/" in turn.voice or turn.voice.startswith(("clone:", "file:")):
        raise UnsupportedFeature(
            f"voice {turn.voice!r}: the embedded voice cannot clone a speaker from a recording; "
            "that needs the GPU engine (--engine indextts2)",
            field="voice",
        )
    manner = manners.manner_of(turn.controls)
    if manner.voice:
        _check_manner(manner.voice, pack)
    if fast and turn.voice in ("", HIBARI):
        return Speaker("hibari", HIBARI, (), manner)
    wanted = turn.voice or DEFAULTS[_main_lang(cut, cuts)]
    mix = pack.parse(DEFAULTS["en"] if wanted == HIBARI else wanted)
    return Speaker("kokoro", _mix_id(mix), mix, manner)


def _check_manner(name: str, pack: VoicePack) -> None:
    try:
        pack.parse(name)
    except BadRequest as error:
        raise BadRequest(
            f"manner {name!r} is neither a preset ({', '.join(manners.PRESETS)}) nor a voice id",
            field="manner",
        ) from error


def _fits_hibari(cuts: Sequence[_Cut]) -> bool:
    """Is all that the default speaker says English, and nobody asks for what bends pitch?

    A preset alone is no reason to leave hibari: its pace and level are kept, its pitch is not. A
    script reads decisions out seriously, and that must not change the voice of all English notes.
    """
    own = [cut for cut in cuts if cut.turn.voice in ("", HIBARI)]
    english = all(lang == "en" for cut in own for lang in cut.langs)
    english = english and not any(_HANZI.search(cut.turn.text) for cut in own)
    return english and not any(manners.asks_for_pitch(cut.turn.controls) for cut in own)


def _main_lang(cut: _Cut, cuts: Sequence[_Cut]) -> str:
    """Whose default voice speaks: that of the turn's language if named, else of the main one."""
    if cut.turn.lang not in ("", "auto"):
        return cut.turn.lang.split("-")[0].lower()
    weights: Counter[str] = Counter()
    for other in cuts:
        if not other.turn.voice and other.turn.lang in ("", "auto"):
            for span, lang in zip(other.spans, other.langs, strict=True):
                # An ideograph takes about as long to say as three letters.
                weights[lang] += len(span.text) * (3 if lang in ("zh", "ja") else 1)
    return weights.most_common(1)[0][0] if weights else "en"


def _mix_id(mix: Mix) -> str:
    return mix[0][0] if len(mix) == 1 else ",".join(f"{name}:{share:.4g}" for name, share in mix)


def _read(span: Span, lang: str, *, british: bool) -> Reading:
    read: Callable[..., Reading] = front_end(lang).read
    if lang == "en" and _HANZI.search(span.text):
        mixed: Callable[..., Reading] = front_end("zh").read
        return mixed(span.text, offset=span.start, british=british, numbers="en")
    if lang in ("en", "zh"):
        return read(span.text, offset=span.start, british=british)
    return read(span.text, lang=lang, offset=span.start)


def _complaints(reading: Reading) -> list[str]:
    share = unknown_share(reading.words)
    if share > UNKNOWN_SHARE:
        log.warning("phonemes unknown to the voice", extra={"share": round(share, 3)})
    left_out = [f"{text!r} cannot be read and is left out" for text in reading.unread]
    odd = [f"{note!r} is no pinyin reading; the usual one is spoken" for note in reading.odd_notes]
    return left_out + odd


def _estimate_ms(lines: Sequence[Line], rate: float) -> int:
    tokens = sum(len(line.tokens) for line in lines)
    return round((MS_PER_TOKEN * tokens + PAD_MS * len(lines)) / rate)


def _length_warning(request: SpeechRequest, sentences: Sequence[Sentence]) -> list[str]:
    natural_s = sum(one.estimated_ms + one.pause_before_ms for one in sentences) / 1000
    if request.target_s is None or not natural_s:
        return []
    ratio = request.target_s / natural_s
    if SENSIBLE[0] <= ratio <= SENSIBLE[1]:
        return []
    return [
        f"{request.target_s:g} s is about {ratio:.2f} times the natural length: it sounds forced"
    ]
