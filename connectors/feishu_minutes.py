"""Feishu and Lark Minutes: a recorded meeting becomes a note by itself.

The event says that minutes are there; summary, chapters, to-dos and transcript are fetched with the
token of the user who subscribed. That token lives two hours and is refreshed by `upkeep`, with a
refresh token that works once, so the next one is kept in the endpoint's state.

The note's text is Markdown in this form, with only the sections that the minutes have:

    ## 摘要                                   ## Summary
    一段话。
    ## [00:03:12] 接口延期                     one per chapter, with where it begins
    章节的内容。
    ## 待办事项                                ## To-dos
    - [ ] 更新文档（负责人：李雷和韩梅梅）        - [x] Update the docs (owner: Alice)
    ## 文字记录                                ## Transcript
    [00:00:05] 李雷：大家好。
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from pydantic import Field, SecretStr, field_validator

from connectors.base import (
    Accepted,
    Budget,
    Call,
    Connector,
    Detail,
    Hook,
    Note,
    NoteEvent,
    NoteRef,
    Reply,
)
from connectors.errors import ConnectorError, Malformed, ToolRefused
from connectors.feishu_api import AppConfig, AppSecrets, FeishuApi
from connectors.feishu_events import (
    MAX_BODY_BYTES,
    EventDoor,
    delivery_key,
    is_of_event,
    read_event,
)
from connectors.http import path_of

MINUTE_GENERATED = "minutes.minute.generated_v1"
CONTAINER = "minutes"

_HAN = re.compile("[\u4e00-\u9fff]")
_SPOKEN = re.compile(r"(?P<name>\S.{0,40}?)[ \t]+(?P<time>(?:\d{1,2}:)?\d{1,2}:\d{2})(?:\.\d+)?\s*")
_BEGIN = re.compile(r"\s*(?:文字记录|Transcript)\s*[:：]?\s*", re.IGNORECASE)
_GONE = frozenset({"2091005", "2091006"})  # no such minutes, deleted minutes
_MIN_USER_S = 600.0


class FeishuMinutes(Connector):
    """Minutes of the meetings of one user."""

    name: ClassVar[str] = "feishu_minutes"
    max_body_bytes: ClassVar[int] = MAX_BODY_BYTES
    upkeep_s: ClassVar[float] = 3_600.0
    read_size: ClassVar[int] = 1
    reads = True

    class Secrets(AppSecrets):
        """`refresh_token`: the first one, from authorising; the endpoint keeps the later ones."""

        encrypt_key: list[SecretStr] = Field(min_length=1, max_length=4)
        token: list[SecretStr] = Field(min_length=1, max_length=4)
        refresh_token: SecretStr

        @field_validator("encrypt_key", "token", mode="before")
        @classmethod
        def _listed(cls, value: Any) -> Any:
            return [value] if isinstance(value, (str, SecretStr)) else value

    class Config(AppConfig):
        """`detail = "brief"` says summary, decisions and to-dos of long meetings."""

        secrets: FeishuMinutes.Secrets
        detail: Detail = "brief"
        transcript: bool = True

    def __init__(self, endpoint: str, config: Config) -> None:
        super().__init__(endpoint, config)
        secrets = config.secrets
        self._settings = config
        self._api = FeishuApi(config.address, secrets)
        self._door = EventDoor(
            [key.get_secret_value() for key in secrets.encrypt_key],
            [token.get_secret_value() for token in secrets.token],
        )

    def verify(self, hook: Hook, *, now: datetime) -> bytes | Reply:
        return self._door.open(hook, now=now)

    def as_sent(self, body: bytes, *, now: datetime, msg_id: str) -> Hook:
        """Sealed and signed with the newest Encrypt Key."""
        return self._door.as_sent(body, now=now)

    def events(self, body: bytes, hook: Hook) -> list[NoteEvent]:
        kind, event_id, event = read_event(body)
        if kind != MINUTE_GENERATED:
            return []
        token = event.get("minute_token")
        if not isinstance(token, str) or not 0 < len(token) <= 120:
            raise Malformed("/event/minute_token", "/event/minute_token: missing")
        return [NoteEvent(delivery_key(event_id, token), self._ref(token))]

    def answer(self, accepted: Accepted, hook: Hook) -> Reply:
        """Always 200: at any other status the event service tries again."""
        return Reply(200, super().answer(accepted, hook).body)

    def refuse(self, error: ConnectorError) -> Reply:
        """A genuine event that cannot be read is taken, or it would be repeated for hours."""
        return Reply.of(200, {"ok": False}) if is_of_event(error) else super().refuse(error)

    def read(self, refs: list[NoteRef]) -> Iterator[Note]:
        """Fetch minutes; ones that were deleted are left out."""
        for ref in refs:
            path = "/minutes/v1" + path_of("minutes", ref.key)
            try:
                minute = self._get(path).get("minute") or {}
                artifacts = self._get(f"{path}/artifacts")
            except ToolRefused as error:
                if error.code in _GONE:
                    continue
                raise
            transcript = self._transcript(path, artifacts) if self._settings.transcript else ""
            yield self._note(ref, minute, artifacts, transcript)

    def upkeep(self, state: dict[str, Any], *, now: datetime, address: str) -> dict[str, Any]:
        """Refresh the user's token, and subscribe to new minutes once a day."""
        state = self._refreshed(state, now)
        day = now.date().isoformat()
        if state.get("subscribed_on") != day:
            content = {"event_type": MINUTE_GENERATED}
            token = str(state["secrets"]["user_token"])
            path = "/minutes/v1/minutes/subscription"
            self._api.call("POST", path, content=content, user_token=token)
            state = {**state, "subscribed_on": day}
        return state

    def bucket(self, ref: NoteRef | None, call: Call = "write") -> Budget | None:
        """The platform takes five calls a second of one app here."""
        return Budget(f"feishu_minutes/{self.endpoint}", per_s=2.0, burst=2)

    def _refreshed(self, state: dict[str, Any], now: datetime) -> dict[str, Any]:
        """The state with a user token that lives for another while."""
        first = self._settings.secrets.refresh_token.get_secret_value()
        origin = hashlib.sha256(first.encode()).hexdigest()[:16]
        kept = dict(state.get("secrets") or {})
        is_new = state.get("origin") != origin  # somebody authorised again
        if not is_new and float(state.get("user_until", 0)) > now.timestamp() + 2 * _MIN_USER_S:
            return state
        answer = self._api.refresh_user(first if is_new else str(kept.get("refresh_token", first)))
        lives_s = max(float(answer.get("expires_in", 0)), _MIN_USER_S)
        secrets = {
            "user_token": str(answer.get("access_token", "")),
            "refresh_token": str(answer.get("refresh_token", "")),
        }
        return {
            **state,
            "origin": origin,
            "secrets": secrets,
            "user_until": now.timestamp() + lives_s,
            "next_upkeep": now.timestamp() + lives_s / 2,
        }

    def _get(self, path: str) -> dict[str, Any]:
        return self._api.call("GET", path, user_token=self._user_token())

    def _user_token(self) -> str:
        """What `upkeep` has left; without one the app asks in its own name."""
        secrets = self.state.get("secrets")
        return str(secrets.get("user_token", "")) if isinstance(secrets, Mapping) else ""

    def _transcript(self, path: str, artifacts: Mapping[str, Any]) -> str:
        """The artifacts' own, or an export; one that may not be exported is left out."""
        text = artifacts.get("transcript")
        if isinstance(text, str) and text.strip():
            return text
        wanted = {"need_speaker": "true", "need_timestamp": "true", "file_format": "txt"}
        try:
            raw = self._api.download(
                f"{path}/transcript", params=wanted, user_token=self._user_token()
            )
        except ToolRefused:
            return ""
        return raw.decode("utf-8-sig", "replace")

    def _note(
        self,
        ref: NoteRef,
        minute: Mapping[str, Any],
        artifacts: Mapping[str, Any],
        transcript: str,
    ) -> Note:
        text = minutes_text(artifacts, transcript)
        created = str(minute.get("create_time", ""))
        modified = datetime.fromtimestamp(int(created) / 1000, UTC) if created.isdecimal() else None
        title = " ".join(str(minute.get("title") or "").split())[:500]
        detail: Detail | Literal[""] = self._settings.detail
        return Note(ref, text, title, detail=detail, modified_at=modified, ready=bool(text))

    def _ref(self, token: str) -> NoteRef:
        return NoteRef(self.endpoint, CONTAINER, "", token)


FeishuMinutes.Config.model_rebuild()


def minutes_text(artifacts: Mapping[str, Any], transcript: str) -> str:
    """Artifacts and transcript as Markdown; the form is at the top of this file."""
    summary = str(artifacts.get("summary") or "").strip()
    chapters = [one for one in artifacts.get("minute_chapters") or () if isinstance(one, dict)]
    todos = [one for one in artifacts.get("minute_todos") or () if isinstance(one, dict)]
    said = "".join((summary, transcript[:2_000], *(str(one.get("title")) for one in chapters)))
    zh = _HAN.search(said) is not None
    sections = [f"## {'摘要' if zh else 'Summary'}\n\n{summary}"] if summary else []
    sections += [text for text in map(_chapter, chapters) if text]
    lines = [line for line in (_todo(one, zh) for one in todos) if line]
    if lines:
        sections.append("\n".join((f"## {'待办事项' if zh else 'To-dos'}\n", *lines)))
    spoken = _speech(transcript, "：" if zh else ": ")
    if spoken:
        sections.append(f"## {'文字记录' if zh else 'Transcript'}\n\n{spoken}")
    return "\n\n".join(sections)


def _chapter(chapter: Mapping[str, Any]) -> str:
    start = chapter.get("start_ms")
    clock = f"[{_clock(start)}] " if isinstance(start, int) else ""
    title = " ".join(str(chapter.get("title") or "").split())
    content = str(chapter.get("summary_content") or "").strip()
    return f"## {clock}{title}\n\n{content}" if content else ""


def _todo(todo: Mapping[str, Any], zh: bool) -> str:
    content = " ".join(str(todo.get("content") or "").split())
    names = [str(name).strip() for name in todo.get("assignees") or () if str(name).strip()]
    box = "x" if todo.get("is_done") is True else " "
    if not content:
        return ""
    if not names:
        return f"- [{box}] {content}"
    owner = f"（负责人：{'和'.join(names)}）" if zh else f" (owner: {' and '.join(names)})"
    return f"- [{box}] {content}{owner}"


def _speech(transcript: str, colon: str) -> str:
    """`李雷 00:00:05` with the words beneath -> `[00:00:05] 李雷：...`; the rest as it stands."""
    lines = [line.strip() for line in transcript.replace("\r\n", "\n").split("\n")]
    begins = [at for at, line in enumerate(lines) if _BEGIN.fullmatch(line)]
    lines = lines[begins[0] + 1 :] if begins else lines
    spoken: list[str] = []
    label = ""
    for line in filter(None, lines):
        found = _SPOKEN.fullmatch(line)
        if found:
            label = f"[{found['time']}] {found['name']}{colon}"
        else:
            spoken.append(f"{label}{line}")
            label = ""
    return "\n".join(spoken)


def _clock(ms: int) -> str:
    minutes, seconds = divmod(max(ms, 0) // 1000, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"
