"""How English notes are read aloud: money, dates, times, ranges, phone numbers, versions, units."""

from __future__ import annotations

import re

from engine.readings import addresses
from engine.readings.numerals import (
    en_cardinal,
    en_digits,
    en_number,
    en_ordinal,
    en_year,
)
from engine.readings.rules import NUMBER, START, YEAR_FIRST, Rule, one_of, table, year_first

_TABLE = table("en")
_MONTHS: list[str] = _TABLE["months"]
_CURRENCIES: dict[str, list[str]] = _TABLE["currencies"]
_SCALES: dict[str, str] = _TABLE["scales"]
_UNITS: dict[str, list[str]] = _TABLE["units"]
_SAID_AS: dict[str, str] = _TABLE["said_as"]

_SIGNS = [c for c in _CURRENCIES if not c[-1].isalpha()]
_CODES = [c for c in _CURRENCIES if c[-1].isalpha()]
_MONTH = "(?P<month>" + "|".join(rf"{m[:3]}(?:{m[3:]}|t?\b\.?)" for m in _MONTHS) + ")"
_PM = r"(?P<pm>(?<![\w)\]])[-−+])?"
_SCALE = "thousand|million|billion|trillion|" + "|".join(_SCALES)
_DASH = r"\s?[-–—~～]\s?"
_CLOCK = r"(?:[01]?\d|2[0-4]):[0-5]\d(?::[0-5]\d)?"
_NOON = r"(?:\s?(?P<noon>[AaPp])\.?[Mm]\b\.?)?"


def rules() -> list[Rule]:
    """The English rule book, most specific first."""
    return [
        *addresses.rules(at=" at ", dot=" dot "),
        (rf"{START}{YEAR_FIRST}", _iso_date),
        (rf"{START}(?P<m>0?\d|1[0-2])/(?P<d>[0-3]?\d)/(?P<y>[12]\d{{3}})(?!\d)", _us_date),
        (r"(?<![\w.])\+?(?:\d{1,3}[ .\-])?\(?\d{3}\)?[ .\-]\d{3,4}[ .\-]\d{4}(?![\d.])", _phone),
        (r"(?<![\w.])\+\d{6,15}(?!\d)", _phone),
        (r"(?<![\w-])(?P<project>[A-Z][A-Z0-9]{1,9})-(?P<digits>\d{1,7})(?![\w.]*\w)", _issue),
        (r"(?<!\w)#(?P<digits>\d{1,9})(?!\w)", _hash),
        (
            rf"{_PM}(?P<sign>{one_of(_SIGNS)})\s?(?P<n>{NUMBER})"
            rf"(?:\s?(?P<scale>{_SCALE})(?![A-Za-z]))?"
            rf"(?:{_DASH}{one_of(_SIGNS)}?(?P<to>{NUMBER})(?![\d%])"
            rf"(?:\s?(?P<to_scale>{_SCALE})(?![A-Za-z]))?)?",
            _money,
        ),
        (rf"{START}(?P<n>{NUMBER})\s?(?P<sign>{one_of(_CODES)})(?!\w)", _money),
        (rf"{START}(?P<n>{NUMBER})%?{_DASH}(?P<to>{NUMBER})\s?%", _percent),
        (rf"{_PM}{START}(?P<n>{NUMBER})\s?%", _percent),
        (
            rf"(?<!\w){_MONTH}\s(?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?:,?\s(?P<y>[12]\d{{3}}))?(?![\w:%])",
            _date,
        ),
        (
            rf"{START}(?P<d>\d{{1,2}})(?:st|nd|rd|th)?\s{_MONTH}(?:,?\s(?P<y>[12]\d{{3}}))?(?!\w)",
            _date,
        ),
        (rf"{START}(?P<a>{_CLOCK}){_DASH}(?P<b>{_CLOCK})(?![:\d]){_NOON}", _clocks),
        (rf"{START}(?P<a>{_CLOCK})(?![:\d]){_NOON}", _clocks),
        (
            rf"{START}(?P<a>1[0-2]|[1-9]){_DASH}(?P<b>1[0-2]|[1-9])\s?(?P<noon>[AaPp])\.?[Mm]\b\.?",
            _clocks,
        ),
        (rf"{START}(?P<a>1[0-2]|[1-9])\s?(?P<noon>[AaPp])\.?[Mm]\b\.?", _clocks),
        (rf"{START}(?P<a>\d{{1,4}}):(?P<b>\d{{1,4}})(?![:\d])", _ratio),
        (r"(?<!\w)[vV]\.?(?P<n>\d{1,9}(?:\.\d{1,9}){0,5})(?![\w])", _version),
        (r"(?<![\w.])(?P<n>\d{1,9}(?:\.\d{1,9}){2,5})(?!\w)", _dotted),
        (r"(?<!\d)['’]?(?P<n>(?:1[89]|20)?\d0)s(?!\w)", _decade),
        (rf"{START}(?P<n>\d{{1,9}})(?:st|nd|rd|th)(?!\w)", lambda m: en_ordinal(int(m["n"]))),
        (rf"{START}(?P<a>\d{{1,3}})-(?P<b>0\d{{1,3}})(?![\w-])", _label),
        (
            rf"{START}(?P<a>{NUMBER}){_DASH}(?P<b>{NUMBER})(?!-?\d)"
            rf"(?:\s?(?P<unit>{one_of(list(_UNITS))})(?![A-Za-z0-9]))?",
            _range,
        ),
        (rf"{START}(?P<a>\d{{1,3}})/(?P<b>\d{{1,4}})(?![/\d])", _fraction),
        (
            rf"{_PM}{START}(?<![A-Za-z])(?P<n>{NUMBER})"
            rf"\s?(?P<unit>{one_of(list(_UNITS))})(?![A-Za-z0-9])",
            _quantity,
        ),
        (
            rf"{_PM}{START}(?P<n>{NUMBER})(?P<plus>\+(?=[\s,.;)]|$))?",
            _number,
        ),
        (r"(?<!\w)No\.\s?(?=\d)", lambda m: "number "),
        (r"\s?&\s?", lambda m: " and "),
        (r"~(?=[$€£¥]?\d)", lambda m: "about "),
        (r"<\s?(?=[$€£¥]?\d)", lambda m: "less than "),
        (r">\s?(?=[$€£¥]?\d)", lambda m: "more than "),
        (rf"(?<![\w.]){one_of(list(_SAID_AS))}(?!\w)", _said_as),
    ]


def _money(m: re.Match[str]) -> str:
    groups = m.groupdict()
    one, many, cent, cents = _CURRENCIES[m["sign"]]
    if groups.get("to"):
        low, high = _scaled(m["n"], m["scale"]), _scaled(m["to"], m["to_scale"])
        return f"{low} to {high} {many}"
    if groups.get("scale"):
        return f"{_plus_minus(m)}{_scaled(m['n'], m['scale'])} {many}"
    whole, _, fraction = m["n"].replace(",", "").partition(".")
    if len(fraction) != 2 or not cents:
        return f"{_plus_minus(m)}{en_number(m['n'])} {one if m['n'] == '1' else many}"
    said = [f"{en_number(whole)} {one if whole == '1' else many}"] if int(whole) else []
    if int(fraction):
        said.append(f"{en_cardinal(int(fraction))} {cent if fraction == '01' else cents}")
    return _plus_minus(m) + (" and ".join(said) or f"zero {many}")


def _plus_minus(m: re.Match[str]) -> str:
    sign = m.groupdict().get("pm")
    return "" if not sign else "plus " if sign == "+" else "minus "


def _scaled(number: str, scale: str | None) -> str:
    return en_number(number) + (f" {_SCALES.get(scale, scale)}" if scale else "")


def _percent(m: re.Match[str]) -> str:
    to = m.groupdict().get("to")
    return f"{_plus_minus(m)}{en_number(m['n'])}{f' to {en_number(to)}' if to else ''} percent"


def _iso_date(m: re.Match[str]) -> str | None:
    return _full_date(*year_first(m.group()))


def _us_date(m: re.Match[str]) -> str | None:
    return _full_date(int(m["y"]), int(m["m"]), int(m["d"]))


def _full_date(year: int, month: int, day: int) -> str | None:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return f"{_MONTHS[month - 1]} {en_ordinal(day)}, {en_year(year)}"


def _date(m: re.Match[str]) -> str | None:
    day = int(m["d"])
    if not 1 <= day <= 31:
        return None
    month = next(name for name in _MONTHS if name.startswith(m["month"][:3]))
    return f"{month} {en_ordinal(day)}" + (f", {en_year(int(m['y']))}" if m["y"] else "")


def _clocks(m: re.Match[str]) -> str:
    noon = f" {m['noon'].upper()}.M." if m["noon"] else ""
    times = [m[name] for name in ("a", "b") if m.groupdict().get(name)]
    return " to ".join(_clock(t, alone=not noon) for t in times) + noon.replace(
        "A.M.", "A M"
    ).replace("P.M.", "P M")


def _clock(time: str, *, alone: bool) -> str:
    hour, minute, second = (*time.split(":"), "", "")[:3]
    if not minute:
        return en_cardinal(int(hour))
    if second and int(second):
        return f"{_clock(f'{hour}:{minute}', alone=False)} and {en_cardinal(int(second))} seconds"
    if minute == "00":
        if not alone:
            return en_cardinal(int(hour))
        return f"{en_cardinal(int(hour))} " + ("o'clock" if 1 <= int(hour) <= 12 else "hundred")
    return f"{en_cardinal(int(hour))} {'oh ' if minute[0] == '0' else ''}{en_cardinal(int(minute))}"


def _ratio(m: re.Match[str]) -> str:
    return f"{en_number(m['a'])} to {en_number(m['b'])}"


def _label(m: re.Match[str]) -> str:
    """`3-05`, a room or a part number: the zero shows that it is no range."""
    return f"{en_number(m['a'])} {en_digits(m['b']).replace('zero', 'oh')}"


def _range(m: re.Match[str]) -> str:
    a, b = m["a"], m["b"]
    if _is_year(a) and _is_year(b):
        return f"{en_year(int(a))} to {en_year(int(b))}"
    unit = f" {_UNITS[m['unit']][1]}" if m["unit"] else ""
    return f"{en_number(a)} to {en_number(b)}{unit}"


def _fraction(m: re.Match[str]) -> str:
    a, b = int(m["a"]), int(m["b"])
    if m.group() == "24/7" or a == b or (a <= 12 and 10 < b <= 31):  # 50/50; 11/22, maybe a date
        return f"{en_number(m['a'])} {en_number(m['b'])}"
    if not 0 < a < b or b > 100:
        return f"{en_number(m['a'])} slash {en_number(m['b'])}"
    part = {2: "half", 4: "quarter"}.get(b) or en_ordinal(b)
    return f"{en_cardinal(a)} {part}{'s' if a > 1 else ''}"


def _quantity(m: re.Match[str]) -> str:
    unit = _UNITS[m["unit"]][0 if m["n"] == "1" else 1]
    return f"{_plus_minus(m)}{en_number(m['n'])} {unit}"


def _number(m: re.Match[str]) -> str:
    n = m["n"]
    words = en_year(int(n)) if _is_year(n) and not m["pm"] else en_number(n)
    return f"{_plus_minus(m)}{words}{' plus' if m['plus'] else ''}"


def _is_year(n: str) -> bool:
    return len(n) == 4 and n.isdigit() and 1900 <= int(n) <= 2099


def _decade(m: re.Match[str]) -> str:
    n = m["n"]
    head, tens = n[:-2], en_cardinal(int(n[-2:])) if n[-2:] != "00" else "hundred"
    plural = tens[:-1] + "ies" if tens.endswith("y") else tens + "s"
    return f"{en_cardinal(int(head))} {plural}" if head else plural


def _version(m: re.Match[str]) -> str:
    return f"version {_dotted(m)}"


def _dotted(m: re.Match[str]) -> str:
    return " point ".join(en_number(part) for part in m["n"].split("."))


def _phone(m: re.Match[str]) -> str:
    groups = re.findall(r"\d+", m.group())
    return ("plus " if m.group()[0] == "+" else "") + ", ".join(en_digits(g) for g in groups)


def _issue(m: re.Match[str]) -> str:
    return f"{m['project']} {_short(m['digits'])}"


def _hash(m: re.Match[str]) -> str:
    return f"number {_short(m['digits'])}"


def _short(digits: str) -> str:
    return en_number(digits) if len(digits) < 3 else en_digits(digits)


def _said_as(m: re.Match[str]) -> str:
    return _SAID_AS[m.group()]
