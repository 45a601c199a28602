"""URLs and e-mail addresses, for every language."""

from __future__ import annotations

import re

from engine.readings.rules import Rule

URL = (
    r"(?:(?i:https?|ftp)://|(?<![A-Za-z0-9.])(?i:www)\.)"
    r"[^\s<>\"'“”‘’（）()「」，。；！？、\[\]\u3040-\u30ff\u3400-\u9fff]+"
)
EMAIL = (
    r"(?<![A-Za-z0-9_.+\-])[A-Za-z0-9][A-Za-z0-9.+_\-]{0,63}"
    r"@[A-Za-z0-9\-]{1,63}(?:\.[A-Za-z0-9\-]{1,63}){1,4}"
)

_HOST = re.compile(r"(?:\w+://)?(?:www\.)?(?P<host>[^/?#:]+)", re.IGNORECASE)
_TRAILING = ".,;:!?"


def rules(*, at: str, dot: str) -> list[Rule]:
    """Say the host of a URL and the parts of an e-mail address, `at` and `dot` as given."""

    def url(match: re.Match[str]) -> str | None:
        whole = match.group()
        kept = whole.rstrip(_TRAILING)
        host = _HOST.match(kept)
        if host is None:
            return None
        return host["host"].replace(".", dot) + whole[len(kept) :]

    def email(match: re.Match[str]) -> str:
        user, _, host = match.group().rpartition("@")
        return f"{user.replace('.', dot)}{at}{host.replace('.', dot)}"

    return [(URL, url), (EMAIL, email)]
