"""How Chinese notes are read aloud: money, dates, times, ranges, phone numbers, versions, units."""

from __future__ import annotations

import re

from engine.readings import addresses
from engine.readings.numerals import zh_cardinal, zh_digits, zh_number
from engine.readings.rules import NUMBER, START, YEAR_FIRST, Rule, one_of, table, year_first

_TABLE = table("zh")
_CURRENCIES: dict[str, str] = _TABLE["currencies"]
_SCALES: dict[str, str] = _TABLE["scales"]
_UNITS: dict[str, str] = _TABLE["units"]
_LIANG: str = _TABLE["two_as_liang"]

_SIGNS = [c for c in _CURRENCIES if not c[-1].isalpha()]
_CODES = [c for c in _CURRENCIES if c[-1].isalpha()]
_DASH = r"\s?[-–—~～至到]\s?"
_CLOCK = r"(?:[01]?\d|2[0-4]):[0-5]\d(?::[0-5]\d)?"
_PM = r"(?P<pm>(?<![\w)）])(?<!零下)[-−+])?"
_DIGIT_WISE = "电话|手机|热线|拨打|尾号|编号|单号|工号|账号|密码|验证码|邮编|会议号|会议室?ID"


def rules() -> list[Rule]:
    """The Chinese rule book, most specific first."""
    return [
        *addresses.rules(at=" at ", dot="点"),
        (rf"{START}(?P<y>\d{{4}})年", lambda m: f"{zh_digits(m['y'])}年"),
        (rf"{START}(?P<y>\d{{2}})年(?=\d{{1,2}}月)", lambda m: f"{zh_digits(m['y'])}年"),
        (rf"{START}(?P<y>\d{{4}})(?=财年|届|版|年度|[QH][1-4])", lambda m: zh_digits(m["y"])),
        (rf"{START}{YEAR_FIRST}", _iso_date),
        (r"(?<![\w.])(?:\+?86[ \-]?)?1[3-9]\d(?:[ \-]?\d{4}){2}(?!\d)", _phone),
        (r"(?<![\d.])0\d{2,3}[ \-]\d{7,8}(?!\d)", _phone),
        (r"(?<![\d.])[48]00[ \-]?\d{3,4}[ \-]?\d{3,4}(?!\d)", _phone),
        (r"(?<![\w.])\+\d{6,15}(?!\d)", _phone),
        (
            rf"(?P<what>{_DIGIT_WISE})(?P<gap>[为是:：]?\s?)(?P<digits>\d[\d\-]{{2,19}})(?!\d)",
            _coded,
        ),
        (
            r"(?<![A-Za-z0-9\-])(?P<project>[A-Z][A-Z0-9]{1,9})-(?P<digits>\d{1,7})(?![A-Za-z0-9.])",
            _issue,
        ),
        (
            r"(?<![A-Za-z0-9])#(?P<digits>\d{1,9})(?![A-Za-z0-9])",
            lambda m: f"{_short(m['digits'])}号",
        ),
        (
            rf"(?P<sign>{one_of(_SIGNS)})\s?(?P<n>{NUMBER})(?P<scale>[万亿]|[kKMB](?![A-Za-z]))?"
            rf"(?:{_DASH}{one_of(_SIGNS)}?(?P<to>{NUMBER})(?P<to_scale>[万亿])?)?",
            _money,
        ),
        (
            rf"{START}(?P<n>{NUMBER})(?P<scale>[万亿])?\s?(?P<sign>{one_of(_CODES)})(?![A-Za-z])",
            _money,
        ),
        (rf"{START}(?P<n>{NUMBER})(?P<p>[%‰])?{_DASH}(?P<to>{NUMBER})(?P<q>[%‰])", _percents),
        (rf"{_PM}{START}(?P<n>{NUMBER})\s?(?P<q>[%‰])", _percent),
        (rf"{START}(?P<a>{_CLOCK}){_DASH}(?P<b>{_CLOCK})(?![:\d])", _clocks),
        (rf"{START}(?P<a>{_CLOCK})(?![:\d])", _clocks),
        (rf"{START}(?P<a>\d{{1,4}}):(?P<b>\d{{1,4}})(?![:\d])", _ratio),
        (r"(?<![A-Za-z0-9])[vV]\.?(?P<n>\d{1,9}(?:\.\d{1,9}){1,5})(?![A-Za-z0-9])", _version),
        (r"(?<![\d.])(?P<n>\d{1,9}(?:\.\d{1,9}){2,5})(?![A-Za-z0-9])", _dotted),
        (rf"{START}(?P<a>\d{{1,3}})-(?P<b>0\d{{1,3}})(?![\d\-])", _label),
        (rf"第(?P<a>\d{{1,9}}){_DASH}第?(?P<b>\d{{1,9}})(?![\d\-])", _nth_range),
        (
            rf"{START}(?P<a>{NUMBER}){_DASH}(?P<b>{NUMBER})(?![\d\-])(?:(?P<unit>{_unit()})|{_next()})?",
            _range,
        ),
        (rf"{START}(?P<a>\d{{1,3}})/(?P<b>\d{{1,4}})(?![/\d])", _fraction),
        (rf"{_PM}{START}(?<![A-Za-z])(?P<n>{NUMBER})(?P<unit>{_unit()})", _quantity),
        (r"第(?P<n>\d{1,9})", lambda m: f"第{zh_number(m['n'])}"),
        (rf"{_PM}{START}(?P<n>{NUMBER})(?P<plus>\+)?{_next()}?", _number),
        (r"[~≈](?=[$€£¥]?\d)", lambda m: "约"),
        (r"(?<=\S)\s?&\s?(?=\S)", lambda m: "和"),
        (r"<\s?(?=[$€£¥]?\d)", lambda m: "小于"),
        (r">\s?(?=[$€£¥]?\d)", lambda m: "大于"),
        (r"≥", lambda m: "大于等于"),
        (r"≤", lambda m: "小于等于"),
        (r"→", lambda m: "到"),
    ]


def _unit() -> str:
    return rf"\s?{one_of(list(_UNITS))}(?![A-Za-z0-9])"


def _next() -> str:
    return rf"(?P<next>(?=[{_LIANG}]))"


def _count(number: str) -> str:
    """A number before a measure word or unit: 2 is 两."""
    return "两" if number == "2" else zh_number(number)


def _money(m: re.Match[str]) -> str:
    groups = m.groupdict()
    currency = _CURRENCIES[m["sign"]]
    scale = groups.get("scale") or ""
    said = (_count(_bare(m["n"])) if scale else zh_number(_bare(m["n"]))) + _SCALES.get(
        scale, scale
    )
    if groups.get("to"):
        to_scale = groups.get("to_scale") or ""
        said += "到" + zh_number(_bare(m["to"])) + to_scale
    return ("两" if said == "二" else said) + currency


def _plus_minus(m: re.Match[str]) -> str:
    return "" if not m["pm"] else "加" if m["pm"] == "+" else "负"


def _bare(number: str) -> str:
    """Sums drop what adds nothing: `1,200.50` -> `1200.5`."""
    number = number.replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


def _percents(m: re.Match[str]) -> str:
    return f"{_of_hundred(m['q'])}{zh_number(m['n'])}到{_of_hundred(m['q'])}{zh_number(m['to'])}"


def _percent(m: re.Match[str]) -> str:
    return f"{_plus_minus(m)}{_of_hundred(m['q'])}{zh_number(m['n'])}"


def _of_hundred(sign: str) -> str:
    return "百分之" if sign == "%" else "千分之"


def _iso_date(m: re.Match[str]) -> str | None:
    year, month, day = year_first(m.group())
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return f"{zh_digits(str(year))}年{zh_cardinal(month)}月{zh_cardinal(day)}日"


def _clocks(m: re.Match[str]) -> str:
    return "到".join(_clock(m[name]) for name in ("a", "b") if m.groupdict().get(name))


def _clock(time: str) -> str:
    hour, minute, *second = time.split(":")
    said = f"{_count(str(int(hour)))}点"
    if minute != "00" or second:
        said += f"{'零' if minute[0] == '0' else ''}{zh_cardinal(int(minute)).removeprefix('零')}分"
    return said + (f"{zh_cardinal(int(second[0]))}秒" if second else "")


def _ratio(m: re.Match[str]) -> str:
    return f"{zh_number(m['a'])}比{zh_number(m['b'])}"


def _label(m: re.Match[str]) -> str:
    """`3-05`, a room or a part number: the zero shows that it is no range."""
    return f"{zh_number(m['a'])}杠{zh_digits(m['b'])}"


def _range(m: re.Match[str]) -> str:
    unit = _UNITS[m["unit"].strip()] if m["unit"] else ""
    if not unit and _is_year(m["a"]) and _is_year(m["b"]):
        return f"{zh_digits(m['a'])}到{zh_digits(m['b'])}"
    said = _count if unit or m["next"] is not None else zh_number
    return f"{said(m['a'])}到{said(m['b'])}{unit}"


def _is_year(n: str) -> bool:
    return len(n) == 4 and n.isdigit() and 1900 <= int(n) <= 2099


def _nth_range(m: re.Match[str]) -> str:
    return f"第{zh_number(m['a'])}到{zh_number(m['b'])}"


def _fraction(m: re.Match[str]) -> str:
    if m.group() == "24/7":
        return "二十四七"
    if int(m["a"]) <= 12 and 10 < int(m["b"]) <= 31:
        return f"{zh_number(m['a'])}月{zh_number(m['b'])}日"
    if 0 < int(m["a"]) < int(m["b"]):
        return f"{zh_number(m['b'])}分之{zh_number(m['a'])}"
    return f"{zh_number(m['a'])}斜杠{zh_number(m['b'])}"


def _quantity(m: re.Match[str]) -> str:
    unit = _UNITS[m["unit"].strip()]
    below = m["pm"] in ("-", "−") and unit.endswith("氏度")
    return f"{'零下' if below else _plus_minus(m)}{_count(m['n'])}{unit}"


def _number(m: re.Match[str]) -> str:
    words = _count(m["n"]) if m["next"] is not None else zh_number(m["n"])
    return f"{_plus_minus(m)}{words}{'多' if m['plus'] and m['next'] is None else ''}"


def _version(m: re.Match[str]) -> str:
    return f"版本{_dotted(m)}"


def _dotted(m: re.Match[str]) -> str:
    return "点".join(zh_number(part) for part in m["n"].split("."))


def _phone(m: re.Match[str]) -> str:
    groups = re.findall(r"\d+", m.group())
    return ("加" if m.group()[0] == "+" else "") + "，".join(
        zh_digits(g, phone=True) for g in groups
    )


def _coded(m: re.Match[str]) -> str:
    return m["what"] + m["gap"] + zh_digits(m["digits"], phone=True)


def _issue(m: re.Match[str]) -> str:
    return f"{m['project']} {_short(m['digits'])}"


def _short(digits: str) -> str:
    return zh_number(digits) if len(digits) < 3 else zh_digits(digits)
