"""Written text -> what the tokenizer takes, in the order the model was trained with.

The order of the rules is part of the model's interface: change it, and the same text gives other
pieces. Two modes: `parity` follows the reference rule by rule (with any verbaliser), `natural`
resolves readings first and never lets a digit or an empty text through.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from engine.backends.indextts2 import pinyin
from engine.backends.indextts2.errors import ModelUnusable
from engine.text import normalise as spell_out

log = logging.getLogger(__name__)

Lang = Literal["zh", "en"]
Glossary = Mapping[str, str | Mapping[str, str]]

_HAN = re.compile("[\u4e00-\u9fff]")
_LATIN = re.compile("[A-Za-z]")
_EMAIL = re.compile(r"[A-Za-z0-9]+@[A-Za-z0-9]+\.[A-Za-z]+")
_IS = re.compile(r"(what|where|who|which|how|t?here|it|s?he|that|this)'s", re.IGNORECASE)
_TERM = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:-[A-Za-z0-9]+)+")
_NAME = re.compile("[\u4e00-\u9fff]+(?:[-·—][\u4e00-\u9fff]+){1,2}")
_MARKUP = re.compile(r"<[^|<>\n]+\|[^|<>\n]+>")
_MARKS = {
    "：": ",",
    "；": ",",
    ";": ",",
    "，": ",",
    "。": ".",
    "！": "!",
    "？": "?",
    "\n": " ",
    "·": "-",
    "、": ",",
    "...": "…",
    "……": "…",
    ",,,": "…",
    "，，，": "…",
    **dict.fromkeys('“”"‘’（）()《》【】[]「」', "'"),
    **dict.fromkeys("—～~", "-"),
    ":": ",",
}
_MARK = re.compile("|".join(re.escape(mark) for mark in _MARKS))
_MARK_ZH = re.compile(_MARK.pattern + r"|\$")
_DIGITS = {"zh": "零一二三四五六七八九", "en": "zero one two three four five six seven eight nine"}
_HYPHEN = "\uf8fe"  # private use: no verbaliser reads it as "minus"
_READINGS_FROM, _NAMES_FROM = 0xE000, 0xE800
_PRIVATE = re.compile("[\ue000-\uf8ff]")


class Verbaliser(Protocol):
    """Says numbers, dates, units: what the model's vocabulary has no pieces for."""

    def __call__(self, text: str, lang: Lang) -> str:
        """The text with everything spelled out."""
        ...


@dataclass(frozen=True, slots=True)
class Normalised:
    """A text ready for the tokenizer.

    Attributes:
        text: what is tokenised.
        lang: whose rules were used.
        warnings: sentences for people about what could not be read as written.
    """

    text: str
    lang: Lang
    warnings: tuple[str, ...] = ()


def choose_lang(text: str, *, pinyin_counts: bool = True) -> Lang:
    """Chinese if there is an ideograph, no Latin letter, a pinyin token, or it is an e-mail
    address.

    `pinyin_counts` is the reference's rule; it takes `v2` for a syllable.
    """
    is_chinese = (
        _HAN.search(text)
        or not _LATIN.search(text)
        or _EMAIL.fullmatch(text)
        or (pinyin_counts and pinyin.TOKEN.search(text))
    )
    return "zh" if is_chinese else "en"


class _Placeholders:
    """Stretches set aside under one private-use character each, so that no rule touches them."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._kept: list[str] = []

    def put(self, text: str) -> str:
        self._kept.append(text)
        return chr(self._first + len(self._kept) - 1)

    def restore(self, text: str) -> str:
        for i, kept in enumerate(self._kept):
            text = text.replace(chr(self._first + i), kept)
        return text


class Normaliser:
    """Applies the rules.

    Args:
        verbalise: says numbers and units.
        glossary: fixed readings; a value is a string, or one per language.
        mode: `natural`, or `parity`, see above.
        is_known: whether the vocabulary has a pinyin token.
    """

    def __init__(
        self,
        verbalise: Verbaliser,
        *,
        glossary: Glossary | None = None,
        mode: Literal["natural", "parity"] = "natural",
        is_known: Callable[[str], bool] = lambda token: True,
    ) -> None:
        self._verbalise = verbalise
        self._is_natural = mode == "natural"
        self._is_known = is_known
        self._glossary = {term.lower(): value for term, value in (glossary or {}).items()}
        terms = sorted(self._glossary, key=len, reverse=True)
        self._terms = re.compile("|".join(map(re.escape, terms)), re.IGNORECASE) if terms else None

    def __call__(self, text: str, lang: Lang | None = None) -> Normalised:
        """Normalise one text; never empties one that has something to say.

        Args:
            text: a sentence.
            lang: what texts without an ideograph are read in; None goes by their letters.
        """
        text = _PRIVATE.sub("", text)
        if not self._is_natural and len(text.strip()) == 1:
            return Normalised(text, choose_lang(text))
        readings, warnings = _Placeholders(_READINGS_FROM), list[str]()
        if self._is_natural:
            plain = text
            text, unknown = pinyin.resolve(
                text, self._is_known, lambda token: readings.put(f" {token} ")
            )
            warnings += [f"no pinyin token for {note}; it is read as usual" for note in unknown]
            found = choose_lang(text, pinyin_counts=False)
            has_han = text != plain or _HAN.search(text) is not None
            lang = "zh" if has_han else lang or found
        else:
            text = _MARKUP.sub(lambda m: readings.put(m.group()), text)
            lang = choose_lang(text)
        text = self._replace_terms(_IS.sub(r"\1 is", text), lang)
        said = self._spoken(text, lang, warnings)
        return Normalised(readings.restore(said).strip(), lang, tuple(warnings))

    def _replace_terms(self, text: str, lang: Lang) -> str:
        def reading(match: re.Match[str]) -> str:
            value = self._glossary[match.group().lower()]
            return value if isinstance(value, str) else value.get(lang, match.group())

        return self._terms.sub(reading, text) if self._terms else text

    def _spoken(self, text: str, lang: Lang, warnings: list[str]) -> str:
        names = _Placeholders(_NAMES_FROM)
        text = _TERM.sub(lambda m: m.group().replace("-", _HYPHEN), text)
        if lang == "zh":
            text = text.rstrip()
            if not self._is_natural:  # natural texts have their readings set aside already
                text = pinyin.TOKEN.sub(lambda m: names.put(pinyin.correct(m.group())), text)
            text = _NAME.sub(lambda m: names.put(m.group()), text)
        if self._is_natural:
            text = _verbalised(self._verbalise, spell_out(text, lang).text, lang, warnings)
            text = _spell_digits(text, lang, warnings)
        else:
            text = self._verbalise(text, lang)
        text = re.sub(rf"\s*{_HYPHEN}\s*", "-", names.restore(text))
        if lang == "zh" and not self._is_natural:  # the reference loses money signs here
            return _MARK_ZH.sub(lambda m: _MARKS.get(m.group(), "."), text)
        return _MARK.sub(lambda m: _MARKS[m.group()], text)


def _verbalised(verbalise: Verbaliser, text: str, lang: Lang, warnings: list[str]) -> str:
    """The verbaliser's answer, unless it fails or swallows the text."""
    try:
        said = verbalise(text, lang)
    except Exception as error:
        log.warning("verbaliser failed", extra={"lang": lang, "error": type(error).__name__})
        warnings.append("numbers and units could not be spelled out; they are read digit by digit")
        return text
    if _letters(said) < _letters(text) // 2:
        warnings.append("the verbaliser dropped text; its answer was not used")
        return text
    return said


def _letters(text: str) -> int:
    return sum(char.isalpha() for char in text)


def _spell_digits(text: str, lang: Lang, warnings: list[str]) -> str:
    """Read left-over digits one by one: the vocabulary has none, they would be lost."""
    if not any(char.isdigit() for char in text):
        return text
    warnings.append("some figures were not understood; they are read digit by digit")
    names = list(_DIGITS["zh"]) if lang == "zh" else [f" {n} " for n in _DIGITS["en"].split()]
    return "".join(names[unicodedata.digit(c)] if c.isdigit() else c for c in text)


class WeText:
    """The `wetext` library; its grammars are loaded on first use."""

    def __init__(self) -> None:
        from wetext import Normalizer

        self._by_lang = {
            "zh": Normalizer(lang="zh", operator="tn", remove_erhua=False),
            "en": Normalizer(lang="en", operator="tn"),
        }

    def __call__(self, text: str, lang: Lang) -> str:
        return str(self._by_lang[lang].normalize(text))


def read_glossary(path: Path) -> Glossary:
    """A YAML map of term to reading, or to readings by language (`zh`, `en`).

    Raises:
        ModelUnusable: the file is something else.
    """
    import yaml

    raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    is_good = isinstance(raw, Mapping) and all(
        isinstance(value, str)
        or (isinstance(value, Mapping) and all(isinstance(v, str) for v in value.values()))
        for value in raw.values()
    )
    if not is_good:
        raise ModelUnusable(
            f"{path}: a glossary maps each term to a reading, or to zh and en readings"
        )
    return {str(term): value for term, value in raw.items()}
