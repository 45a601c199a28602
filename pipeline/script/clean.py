"""What no voice can say is taken out of a line, or said in another way, and remembered."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field

from pipeline.script.model import Skipped
from pipeline.script.words import Phrases

_NOISE = re.compile(
    r"""(?=[!\[<hfwHFW0-9a-fA-F&:@*~`_\\]|[^\w\s，。；：、！？])(?:(?P<image>!\[(?P<alt>[^\[\]\n]{0,300})\]\((?P<image_url>[^()\s]{0,2000})\))
    |(?P<link>\[(?P<words>[^\[\]\n]{1,300})\]\((?P<link_url>[^()\s]{0,2000})(?:\s"[^"\n]{0,200}")?\))
    |(?P<url><?(?:https?|ftp)://[^\s<>()（）\[\]，。；、！？"'“”]+>?|\bwww\.[^\s<>()（），。；、]+)
    |(?P<uuid>\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b)
    |(?P<tag></?[A-Za-z][A-Za-z0-9-]{0,20}(?:\s[^<>]{0,300})?/?>|<!--[^<>]{0,500}-->)
    |(?P<entity>&(?:[A-Za-z]{2,8}|\#\d{1,6}|\#x[0-9a-fA-F]{1,5});)
    |(?P<shortcode>(?<![\w:]):[a-z][a-z0-9_+-]{1,30}:(?![\w:]))
    |(?P<mention>(?<![\w.])@(?=[^\W\d_]))
    |(?P<mark>\*+|~~+|`+|(?<!\w)_{1,3}(?=\w)|(?<=\w)_{1,3}(?!\w)|\\(?=[\\*_`\[\]#|~]))
    |(?P<symbol>[\u2600-\u2775\u2794-\u27bf\u2b00-\u2bff\ufe0f\u20e3\U0001f000-\U0001faff]
        |[\u200b-\u200f\u2028-\u202e\u2060\ufeff\U000e0020-\U000e007f\ue000-\uf8ff]
        |[\x00-\x08\x0b-\x1f\x7f-\x9f]))
    """,
    re.VERBOSE,
)
_SPACES = re.compile(r"[ \t\u3000\xa0]{2,}|\t")
_LEADING_TIME = re.compile(r"\s*[\[(（]\s*(?:\d{1,2}:)?\d{1,2}:\d{2}(?:[.,]\d{1,3})?\s*[\])）]\s*")


@dataclass(slots=True)
class Cleaner:
    """Takes out of a line what cannot be said, and remembers it."""

    phrases: Phrases
    skipped: list[Skipped] = field(default_factory=list)

    def skip(self, text: str, reason: str) -> None:
        if has_letters(text):
            self.skipped.append(Skipped(text, reason))

    def clean(self, text: str) -> str:
        stamp = _LEADING_TIME.match(text)
        if stamp:
            self.skip(stamp.group(), "timestamp")
            text = text[stamp.end() :]
        return _SPACES.sub(" ", _NOISE.sub(self._instead, text)).strip()

    def _instead(self, found: re.Match[str]) -> str:
        kind = found.lastgroup
        text = found.group()
        if found["link"] or found["image"]:
            self.skip(found["link_url"] or found["image_url"] or "", "link")
            words = found["words"] or found["alt"] or ""
            return _NOISE.sub(self._instead, words)
        if kind == "url":
            url = text.rstrip(".:;,*_~`!?")
            self.skip(url, "link")
            return self.phrases.link + text[len(url) :]
        if kind == "entity":
            self.skip(text, "markup")
            said = html.unescape(text)
            return said if said.isprintable() and said != text else " "
        if kind in ("mention", "mark"):
            return ""
        self.skip(text, {"uuid": "identifier", "tag": "markup"}.get(str(kind), "symbol"))
        return " " if kind == "tag" else ""


def has_letters(text: str) -> bool:
    """Whether a text has letters or digits: what may not be lost."""
    return any(map(str.isalnum, text))
