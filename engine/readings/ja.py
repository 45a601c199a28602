"""Japanese: written forms its front end misreads, as ones it reads well (it knows numbers)."""

from __future__ import annotations

import re

from engine.readings import addresses
from engine.readings.rules import NUMBER, START, YEAR_FIRST, Rule, year_first

_DIGITS = ("ゼロ", "イチ", "ニ", "サン", "ヨン", "ゴ", "ロク", "ナナ", "ハチ", "キュウ")
_CURRENCIES = {"¥": "円", "$": "ドル", "€": "ユーロ", "£": "ポンド"}
_DASH = r"\s?[-–—~～〜]\s?"
_CLOCK = r"(?:[01]?\d|2[0-4]):[0-5]\d"


def rules() -> list[Rule]:
    """The Japanese rule book, most specific first."""
    return [
        *addresses.rules(at="アットマーク", dot="ドット"),
        (rf"{START}{YEAR_FIRST}", _date),
        (r"(?<![\w.])0\d{1,4}-\d{1,4}-\d{4}(?!\d)", _phone),
        (rf"(?P<sign>[{''.join(_CURRENCIES)}])\s?(?P<n>{NUMBER})(?P<scale>[万億兆])?", _money),
        (rf"{START}(?P<n>{NUMBER})%?{_DASH}(?P<to>{NUMBER})%", _percents),
        (rf"{START}(?P<n>{NUMBER})%", lambda m: f"{_plain(m['n'])}パーセント"),
        (rf"{START}(?P<a>{_CLOCK}){_DASH}(?P<b>{_CLOCK})(?![:\d])", _clocks),
        (rf"{START}(?P<a>{_CLOCK})(?![:\d])", _clocks),
        (
            rf"{START}(?P<a>\d{{1,3}})-(?P<b>0\d{{1,3}})(?![\d\-])",
            lambda m: f"{m['a']}の{_spell(m['b'])}",
        ),
        (rf"{START}(?P<a>{NUMBER}){_DASH}(?P<b>{NUMBER})(?![\d\-])", _range),
        (rf"{START}\d{{1,3}}(?:,\d{{3}})+(?!\d)", lambda m: _plain(m.group())),
    ]


def _plain(number: str) -> str:
    return number.replace(",", "")


def _spell(digits: str) -> str:
    return "".join(_DIGITS[int(d)] for d in digits if d.isdigit())


def _date(m: re.Match[str]) -> str | None:
    year, month, day = year_first(m.group())
    return f"{year}年{month}月{day}日" if 1 <= month <= 12 and 1 <= day <= 31 else None


def _phone(m: re.Match[str]) -> str:
    return "の".join(_spell(part) for part in m.group().split("-"))


def _money(m: re.Match[str]) -> str:
    return f"{_plain(m['n'])}{m['scale'] or ''}{_CURRENCIES[m['sign']]}"


def _percents(m: re.Match[str]) -> str:
    return f"{_plain(m['n'])}から{_plain(m['to'])}パーセント"


def _clocks(m: re.Match[str]) -> str:
    return "から".join(_clock(m[name]) for name in ("a", "b") if m.groupdict().get(name))


def _clock(time: str) -> str:
    hour, minute = (int(part) for part in time.split(":"))
    return f"{hour}時" + (f"{minute}分" if minute else "")


def _range(m: re.Match[str]) -> str:
    return f"{_plain(m['a'])}から{_plain(m['b'])}"
