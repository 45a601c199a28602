"""Bodies from outside: strict JSON, then a model; whatever is wrong is named.

Hostile input ends in `Malformed`: depth, size, broken text and foreign keys included.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError

from connectors.errors import Malformed, nearest

MAX_DEPTH = 64
MAX_KEYS = 10_000

M = TypeVar("M", bound=BaseModel)

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_DURATION = r"free|fixed:[0-9]{1,4}(s|m)|max:[0-9]{1,4}(s|m)|speed:[0-9](\.[0-9]{1,2})?"
DURATION_RULE = re.compile(_DURATION)


def _storable(text: str) -> str:
    found = _UNSTORABLE.search(text)
    if found:
        kind = "a NUL" if found.group() == "\x00" else "half of a surrogate pair"
        raise ValueError(f"holds {kind} at character {found.start()}, which is no text")
    return text


def _https(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.username is not None:
        raise ValueError("must be an https address without a user name")
    return url


def _tool_address(url: str) -> str:
    parts = urlsplit(url)
    is_here = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
    is_plain = parts.username is None and not parts.query and not parts.fragment
    if not (is_plain and parts.hostname and (is_here or parts.scheme == "https")):
        raise ValueError("must be the https address of the tool; http is for fakes on this machine")
    return url.rstrip("/")


Line = Annotated[str, StringConstraints(max_length=500), AfterValidator(_storable)]
Text = Annotated[str, StringConstraints(max_length=200_000), AfterValidator(_storable)]
Name = Annotated[str, StringConstraints(max_length=100), AfterValidator(_storable)]
Key = Annotated[str, StringConstraints(max_length=120), AfterValidator(_storable)]
Lang = Annotated[str, StringConstraints(pattern=r"^([a-z]{2}|auto|mixed)?$")]
DurationRule = Annotated[str, StringConstraints(pattern=rf"^({_DURATION})?$")]
ApiUrl = Annotated[str, StringConstraints(max_length=200), AfterValidator(_tool_address)]
HttpsUrl = Annotated[str, StringConstraints(max_length=2_000), AfterValidator(_https)]


class Payload(BaseModel):
    """Base of all bodies: exact types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def parse_json(body: bytes) -> Any:
    """Parse strict JSON.

    Raises:
        Malformed: with the byte offset for broken JSON, or for too deep and too many keys.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"the body is not UTF-8 at byte {error.start}"
        raise Malformed("", message, offset_bytes=error.start) from None
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode())
        message = f"the body is not JSON at byte {offset}: {error.msg}"
        raise Malformed("", message, offset_bytes=offset) from None
    except RecursionError:
        raise Malformed("", f"the body is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise Malformed("", f"the body is not JSON: {error}") from None
    _measure(value)
    return value


def validate(model: type[M], value: Any) -> M:
    """Make a model of parsed JSON.

    Raises:
        Malformed: for the first field at fault, with its JSON pointer.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    location = list(first["loc"])
    pointer = json_pointer(location)
    if first["type"] == "extra_forbidden":
        raise Malformed(pointer, f"{pointer}: unknown; {_known(model, location)}") from None
    message = first["msg"].removeprefix("Value error, ")
    raise Malformed(pointer, f"{pointer or 'the body'}: {message}") from None


def json_pointer(location: Iterable[str | int]) -> str:
    """`["data", "a/b", 0]` -> `/data/a~1b/0` (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def _known(model: type[BaseModel], location: list[str | int]) -> str:
    """What the unknown key at `location` may have been meant to be."""
    for part in location[:-1]:
        inner = (
            model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        )
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return nearest(str(location[-1]), model.model_fields)


def _measure(value: Any) -> None:
    """Refuse what is deeper or wider than any honest note; iterative, so depth cannot hurt us."""
    keys = 0
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                keys += len(item)
                inner.extend(item.values())
            elif isinstance(item, list):
                keys += len(item)
                inner.extend(item)
        if keys > MAX_KEYS:
            raise Malformed("", f"the body has more than {MAX_KEYS} entries")
        if not inner:
            return
        level = inner
    raise Malformed("", f"the body is nested deeper than {MAX_DEPTH} levels")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
