"""Numbers in words, English and Chinese, from digits with commas and a decimal point."""

from __future__ import annotations

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = (
    "", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
)  # fmt: skip
_SCALES = (
    (10**15, "quadrillion"),
    (10**12, "trillion"),
    (10**9, "billion"),
    (10**6, "million"),
    (1000, "thousand"),
)
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_LONGEST = 15  # digits read as one number; longer strings are read digit by digit

_HAN_DIGITS = "零一二三四五六七八九"
_HAN_PHONE = "零幺二三四五六七八九"
_HAN_PLACES = ("千", "百", "十", "")
_HAN_GROUPS = ("", "万", "亿", "万亿")


def en_digits(digits: str) -> str:
    """`305` -> `three zero five`; anything that is not a digit is dropped."""
    return " ".join(_ONES[int(d)] for d in digits if d.isdigit())


def en_cardinal(n: int) -> str:
    """0 <= n < 10**18: `48500` -> `forty-eight thousand five hundred`."""
    if n < 20:
        return _ONES[n]
    if n < 100:
        return _TENS[n // 10] + (f"-{_ONES[n % 10]}" if n % 10 else "")
    size, name = (100, "hundred") if n < 1000 else next(s for s in _SCALES if n >= s[0])
    rest = f" {en_cardinal(n % size)}" if n % size else ""
    return f"{en_cardinal(n // size)} {name}{rest}"


def en_ordinal(n: int) -> str:
    """`21` -> `twenty-first`."""
    words = en_cardinal(n)
    cut = max(words.rfind(" "), words.rfind("-")) + 1
    last = words[cut:]
    if last in _ORDINALS:
        return words[:cut] + _ORDINALS[last]
    return words[:cut] + (last[:-1] + "ieth" if last.endswith("y") else last + "th")


def en_year(n: int) -> str:
    """`2026` -> `twenty twenty-six`, `2007` -> `two thousand seven`."""
    if not 1000 <= n <= 9999 or 0 <= n % 1000 < 10:
        return en_cardinal(n)
    high, low = divmod(n, 100)
    if low == 0:
        return f"{en_cardinal(high)} hundred"
    return f"{en_cardinal(high)} {'oh ' if low < 10 else ''}{en_cardinal(low)}"


def en_number(text: str) -> str:
    """`48,500` or `4.75` or `007`: a quantity in words; leading zeros are read out."""
    whole, _, fraction = text.replace(",", "").partition(".")
    if len(whole) > _LONGEST or (len(whole) > 1 and whole[0] == "0"):
        words = en_digits(whole)
    else:
        words = en_cardinal(int(whole))
    return f"{words} point {en_digits(fraction)}" if fraction else words


def zh_digits(digits: str, *, phone: bool = False) -> str:
    """Digit by digit; `phone` says 幺 for 1. Anything that is not a digit is dropped."""
    names = _HAN_PHONE if phone else _HAN_DIGITS
    return "".join(names[int(d)] for d in digits if d.isdigit())


def zh_cardinal(n: int) -> str:
    """0 <= n < 10**16: `48500` -> 四万八千五百, `2000` -> 两千, `10050` -> 一万零五十."""
    if n == 0:
        return "零"
    out = ""
    for index in range(len(_HAN_GROUPS) - 1, -1, -1):
        group = n // 10_000**index % 10_000
        if not group:
            continue
        skipped = out and (group < 1000 or n // 10_000 ** (index + 1) % 10_000 == 0)
        words = "两" if group == 2 and index else _zh_group(group, leads=not out)
        out += ("零" if skipped else "") + words + _HAN_GROUPS[index]
    out = out.replace("万亿", "万", 1) if "万亿" in out and "亿" in out.split("万亿", 1)[1] else out
    return out[1:] if out.startswith("一十") else out


def _zh_group(n: int, *, leads: bool) -> str:
    """1 <= n <= 9999; 两千 at the head of a number, 二千 further on."""
    out, gap = "", False
    for place, digit in zip(_HAN_PLACES, f"{n:04}", strict=True):
        if digit == "0":
            gap = bool(out)
            continue
        name = "两" if digit == "2" and place == "千" and leads else _HAN_DIGITS[int(digit)]
        out += ("零" if gap else "") + name + place
        gap = False
    return out


def zh_number(text: str) -> str:
    """`48,500` or `4.75` or `007`: a quantity; leading zeros are read out."""
    whole, _, fraction = text.replace(",", "").partition(".")
    if len(whole) > _LONGEST or (len(whole) > 1 and whole[0] == "0"):
        words = zh_digits(whole)
    else:
        words = zh_cardinal(int(whole))
    return f"{words}点{zh_digits(fraction)}" if fraction else words
