"""Slack: `/notecast text`, the message shortcut and mentions in; replies and cards out.

What is read aloud, and where its link goes:

    /notecast TEXT             the text                  our answer, seen by its author only
    /notecast LINK             that message, its thread  the command's response address
    shortcut "Read aloud"      that message              the shortcut's response address
    @Notecast TEXT             the text                  a reply in the thread, edited as it goes on
    @Notecast in a thread      the whole thread          the same

`Origin` is the key of a note. Of a response address only its path is kept: the host is Slack's own,
whatever a payload says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from connectors.base import (
    Accepted,
    Budget,
    Call,
    Card,
    Connector,
    Hook,
    Note,
    NoteEvent,
    NotePatch,
    NoteRef,
    Reply,
)
from connectors.errors import ConnectorError, Malformed, ToolRefused, ToolUnavailable
from connectors.fields import Seconds
from connectors.http import Answer, Api, Bearer
from connectors.payload import ApiUrl, Key, Line, Text, parse_json, validate
from connectors.reasons import reason
from connectors.signing import verify_slack

RESPONSES_URL = "https://hooks.slack.com"
HELP = "Write the text, or the link of a Slack message, after the command."
MARK = "notecast_reply"  # metadata by which our own reply in a thread is found again

_PATH = re.compile(r"/[A-Za-z0-9/_-]{1,120}")
_PERMALINK = re.compile(
    r"<?https://[a-z0-9-]+(?:\.enterprise)?\.slack\.com/archives/(?P<channel>[A-Z][A-Z0-9]{1,20})"
    r"/p(?P<s>[0-9]{10})(?P<us>[0-9]{6})(?:\?[^\s|>]*)?(?:\|[^>]*)?>?"
)
_MARKUP = re.compile(r"<([^<>]*)>")
_BOLD = re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]*[^\s*])\*(?![\w*])")
_MAX_PAGES = 20  # of a thread, 200 messages each
_BUSY = frozenset(
    ("ratelimited", "rate_limited", "internal_error", "fatal_error", "service_unavailable",
     "request_timeout", "team_added_to_org")
)  # fmt: skip
_CURES = {
    "not_in_channel": "the app is not in the channel; /invite it there",
    "channel_not_found": "no such channel, or a private one without the app; /invite it there",
    "is_archived": "the channel is archived",
    "thread_not_found": "the thread is gone",
    "message_not_found": "the message is gone",
    "not_authed": "the bot token is missing; copy it from OAuth & Permissions",
    "invalid_auth": "the bot token is not valid; copy it again from OAuth & Permissions",
    "token_revoked": "the bot token was revoked; install the app again and copy the new one",
    "token_expired": "the bot token has expired; install the app again and copy the new one",
    "account_inactive": "the app was removed from the workspace; install it again",
    "missing_scope": "the app lacks a scope; add it under OAuth & Permissions and install it again",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a note came from, as its key.

    Attributes:
        kind: `text` for a command that carried the text, `link` for one that names a message.
        message: time stamp of the message; the root of its thread for a mention.
        reply: path of the response address, or the time stamp of the mention.
    """

    kind: Literal["text", "link", "shortcut", "mention"]
    message: str
    reply: str

    def __str__(self) -> str:
        return f"{self.kind} {self.message} {self.reply}"

    @classmethod
    def of(cls, key: str) -> Origin:
        """Read a key.

        Raises:
            ToolRefused: it is none of ours.
        """
        kind, _, rest = key.partition(" ")
        message, _, reply = rest.partition(" ")
        if kind not in ("text", "link", "shortcut", "mention"):
            raise ToolRefused(f"Slack: {key[:40]!r} is no note of Slack")
        return cls(kind, message, reply)  # type: ignore[arg-type]


class _Incoming(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Command(_Incoming):
    team_id: Key = ""
    channel_id: Key = Field(min_length=1)
    trigger_id: Key = Field(min_length=1)
    response_url: Line = ""
    text: Text = ""


class _Id(_Incoming):
    id: Key = ""


class _Said(_Incoming):
    ts: Key = Field(min_length=1)
    thread_ts: Key = ""
    text: Text = ""


class _Shortcut(_Incoming):
    trigger_id: Key = Field(min_length=1)
    response_url: Line = ""
    team: _Id = _Id()
    channel: _Id
    message: _Said


class _Mention(_Said):
    channel: Key = Field(min_length=1)
    bot_id: Key = ""


class _Callback(_Incoming):
    event_id: Key = Field(min_length=1)
    team_id: Key = ""
    event: _Mention


class Slack(Connector):
    """Slack's v0 signature in; one reply per note, and cards to one channel, out."""

    name: ClassVar[str] = "slack"
    max_body_bytes: ClassVar[int] = 256 << 10

    class Secrets(BaseModel):
        """`signing`: current and previous signing secret; `bot_token`: `xoxb-...`."""

        model_config = ConfigDict(extra="forbid", frozen=True)
        signing: list[SecretStr] = Field(default_factory=list, max_length=4)
        bot_token: SecretStr | None = None

    class Config(Connector.Config):
        """`channel` is where cards go, by its id."""

        secrets: Slack.Secrets
        channel: str = Field(default="", pattern=r"^([A-Z][A-Z0-9]{1,20})?$")
        base_url: ApiUrl = "https://slack.com"

    def __init__(self, endpoint: str, config: Config) -> None:
        super().__init__(endpoint, config)
        self._signing = config.secrets.signing
        self._channel = config.channel
        token = config.secrets.bot_token
        self.reads = token is not None
        self._api = Api(
            f"{config.base_url}/api",
            name="Slack",
            auth=Bearer(token.get_secret_value()) if token else None,
            complaint=_complaint,
        )
        is_fake = config.base_url.startswith("http:")
        self._responses = Api(config.base_url if is_fake else RESPONSES_URL, name="Slack")
        self._names: dict[str, str] = {}

    def verify(self, hook: Hook, *, now: datetime) -> bytes | Reply:
        """Check the signature; a genuine `url_verification` is answered with its challenge."""
        secrets = [secret.get_secret_value() for secret in self._signing]
        verify_slack(secrets, hook.headers, hook.body, now=now)
        challenge = _challenge(hook.body)
        if challenge is not None:
            return Reply.of(200, {"challenge": challenge})
        return hook.body

    def events(self, body: bytes, hook: Hook) -> list[NoteEvent]:
        if body.lstrip()[:1] == b"{":
            return self._callback(parse_json(body))
        form = _form(body)
        if "payload" in form:
            return self._shortcut(parse_json(form["payload"].encode()))
        return self._command(form) if "command" in form else []

    def answer(self, accepted: Accepted, hook: Hook) -> Reply:
        """A message that only a command's author sees; to anything else Slack wants no words."""
        if not _is_command(hook.body):
            return Reply(200)
        if accepted.listen_url:
            text = f"Queued. <{accepted.listen_url}|Listen live> as soon as it begins."
        elif accepted.status == "kept":
            text = "Kept; it is read aloud with the next scheduled reading."
        else:
            text = "Noted; there is nothing to listen to yet."
        return _ephemeral(text)

    def refuse(self, error: ConnectorError) -> Reply:
        """A note that cannot be used is answered in words: any other status, and Slack repeats."""
        if isinstance(error, Malformed):
            return _ephemeral(escape(str(error)))
        return super().refuse(error)

    def read(self, refs: list[NoteRef]) -> Iterator[Note]:
        """Fetch messages with their threads; a note whose text came with its event has none."""
        for ref in refs:
            origin = Origin.of(ref.key)
            if origin.kind == "text":
                continue
            try:
                messages = self._thread(ref.table, origin.message)
            except ToolRefused as error:
                if error.code in ("thread_not_found", "message_not_found"):
                    continue
                raise
            said = [m for m in messages if m.get("text") and not _is_ours(m)]
            said = [m for m in said if m.get("ts") != origin.reply]  # "@Notecast" itself
            if said:
                yield self._note(ref, said)

    def write_back(self, ref: NoteRef, patch: NotePatch) -> None:
        """Say how far it is: one reply in the thread, edited; or what a command's author sees."""
        origin = Origin.of(ref.key)
        text = _progress(patch)
        if not text:
            return
        if origin.kind == "mention":
            self._reply(ref, origin, text)
        elif origin.reply and (origin.kind == "shortcut" or patch.status in ("done", "failed")):
            self._respond(origin.reply, text)

    def notify(self, card: Card) -> None:
        if not self._channel:
            raise ToolRefused("Slack: no channel to post to; set channel to its id, like C0123ABCD")
        title, text = escape(card.title), escape(card.text)
        lines = [f"*{title}*" if title else "", text, f"<{card.link}|{escape(card.button)}>"]
        content = {
            "channel": self._channel,
            "text": "\n".join(line for line in lines if line),
            "unfurl_links": False,
            "unfurl_media": False,
        }
        self._api.post("/chat.postMessage", content)

    def bucket(self, ref: NoteRef | None, call: Call = "write") -> Budget:
        if call == "read":
            return Budget(f"slack/{self.endpoint}/read", per_min=45, burst=5)
        channel = ref.table if ref is not None else self._channel
        return Budget(f"slack/{channel}", per_s=1)

    def problems(self) -> list[str]:
        """What is missing; asks Slack whether the token is good."""
        found = []
        if not self._signing:
            found.append("secrets.signing is missing: nothing that Slack sends would be believed")
        if self.reads:
            self._api.post_form("/auth.test", {})
        else:
            found.append("secrets.bot_token is missing: mentions, links and cards need it")
        return found

    # what comes in -----------------------------------------------------------------------------

    def _callback(self, envelope: Any) -> list[NoteEvent]:
        """Events API: mentions by people, nothing else."""
        event = envelope.get("event") if isinstance(envelope, dict) else None
        if not isinstance(event, dict) or event.get("type") != "app_mention":
            return []
        callback = validate(_Callback, envelope)
        mention = callback.event
        if mention.bot_id:
            return []
        root = mention.thread_ts or mention.ts
        text = plain(re.sub(r"^\s*<@[A-Z0-9]+(\|[^>]*)?>", "", mention.text))
        if not text and root == mention.ts:
            raise Malformed("/event/text", "the mention holds no text and stands in no thread")
        key = str(Origin("mention", root, mention.ts))
        ref = NoteRef(self.endpoint, callback.team_id, mention.channel, key)
        note = Note(ref, text) if text else None
        at = _time(mention.ts)
        return [NoteEvent(callback.event_id, ref, note=note, asked=True, occurred_at=at)]

    def _shortcut(self, payload: Any) -> list[NoteEvent]:
        """Interactivity: the message shortcut, nothing else."""
        if not isinstance(payload, dict) or payload.get("type") != "message_action":
            return []
        shortcut = validate(_Shortcut, payload)
        message = shortcut.message
        text = plain(message.text)
        if not text:
            raise Malformed("/message/text", "this message holds no text to read")
        key = str(Origin("shortcut", message.ts, _response_path(shortcut.response_url)))
        ref = NoteRef(self.endpoint, shortcut.team.id, shortcut.channel.id, key)
        note = Note(ref, text, modified_at=_time(message.ts))
        return [NoteEvent(shortcut.trigger_id, ref, note=note)]

    def _command(self, form: dict[str, str]) -> list[NoteEvent]:
        command = validate(_Command, form)
        path = _response_path(command.response_url)
        text = command.text.strip()
        link = _PERMALINK.fullmatch(text)
        if link and self.reads:
            key = str(Origin("link", f"{link['s']}.{link['us']}", path))
            ref = NoteRef(self.endpoint, command.team_id, link["channel"], key)
            return [NoteEvent(command.trigger_id, ref, asked=True)]
        spoken = plain(text)
        if not spoken or re.fullmatch(r"https?://\S+", spoken):
            raise Malformed("/text", HELP)
        key = str(Origin("text", command.trigger_id, path))
        ref = NoteRef(self.endpoint, command.team_id, command.channel_id, key)
        return [NoteEvent(command.trigger_id, ref, note=Note(ref, spoken))]

    # what goes out -----------------------------------------------------------------------------

    def _thread(self, channel: str, ts: str) -> list[dict[str, Any]]:
        """A message and all its replies, oldest first."""
        messages: list[dict[str, Any]] = []
        form = {"channel": channel, "ts": ts, "limit": "200", "include_all_metadata": "1"}
        for _ in range(_MAX_PAGES):
            page = self._api.post_form("/conversations.replies", form)
            messages += [m for m in page.get("messages", ()) if isinstance(m, dict)]
            cursor = (page.get("response_metadata") or {}).get("next_cursor")
            if not cursor:
                return messages
            form["cursor"] = str(cursor)
        raise ToolRefused(f"Slack: the thread has more than {_MAX_PAGES * 200} messages")

    def _note(self, ref: NoteRef, said: list[dict[str, Any]]) -> Note:
        lines = [(self._name(message), plain(message["text"])) for message in said]
        modified = max(str((m.get("edited") or {}).get("ts") or m.get("ts", "")) for m in said)
        if len(lines) == 1:
            return Note(ref, lines[0][1], speaker=lines[0][0], modified_at=_time(modified))
        text = "\n\n".join(f"{name}: {text}" if name else text for name, text in lines)
        return Note(ref, text, modified_at=_time(modified))

    def _name(self, message: dict[str, Any]) -> str:
        """Who wrote a message; empty where the app may not know."""
        user = str(message.get("user") or "")
        if not user:
            return str(message.get("username") or "")[:100]
        if user not in self._names:
            try:
                profile = self._api.post_form("/users.info", {"user": user}).get("user") or {}
            except ToolRefused:
                profile = {}
            shown = (profile.get("profile") or {}).get("display_name")
            self._names[user] = str(shown or profile.get("real_name") or profile.get("name") or "")
        return self._names[user][:100]

    def _reply(self, ref: NoteRef, origin: Origin, text: str) -> None:
        """Post our reply, or edit it if it is there already."""
        found = (m for m in self._thread(ref.table, origin.message) if _is_ours(m, ref.key))
        mine = next(found, None)
        content = {
            "channel": ref.table,
            "text": text,
            "metadata": {"event_type": MARK, "event_payload": {"note": ref.key}},
            "unfurl_links": False,
        }
        if mine is None:
            self._api.post("/chat.postMessage", {**content, "thread_ts": origin.message})
        else:
            del content["unfurl_links"]
            self._api.post("/chat.update", {**content, "ts": mine["ts"]})

    def _respond(self, path: str, text: str) -> None:
        """Use a response address; it lives for half an hour and five messages."""
        content = {"response_type": "ephemeral", "replace_original": True, "text": text}
        try:
            self._responses.request("POST", path, content=content)
        except ToolRefused as error:
            if error.code not in ("404", "410"):
                raise


Slack.Config.model_rebuild()


def escape(text: str) -> str:
    """Plain text as Slack wants it: no markup and no mention can hide in it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def plain(text: str) -> str:
    """Slack's mrkdwn as Markdown: links by their words, mentions by name, bold with two stars."""
    text = _BOLD.sub(r"**\1**", _MARKUP.sub(_markup, text))
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").strip()


def _markup(found: re.Match[str]) -> str:
    """`<https://a|words>`, `<@U1|ann>`, `<#C1|general>`, `<!date^0^{date}|words>`."""
    target, _, words = found[1].partition("|")
    if words:
        return words
    if target[:1] in ("@", "#"):
        return ""
    return target.removeprefix("!").removeprefix("mailto:")


def _challenge(body: bytes) -> str | None:
    """What a handshake wants back; None for any other body."""
    if b"url_verification" not in body or body.lstrip()[:1] != b"{":
        return None
    try:
        envelope = parse_json(body)
    except Malformed:
        return None
    challenge = envelope.get("challenge")
    is_handshake = envelope.get("type") == "url_verification" and isinstance(challenge, str)
    return challenge if is_handshake else None


def _form(body: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=64
        )
    except ValueError:
        raise Malformed("", "the body is neither JSON nor a form") from None
    return dict(pairs)


def _is_command(body: bytes) -> bool:
    return body.lstrip()[:1] != b"{" and "command" in _form(body)


def _response_path(url: str) -> str:
    """The path of a response address of Slack's own host; empty for anything else."""
    path = url.removeprefix(RESPONSES_URL)
    return path if path != url and _PATH.fullmatch(path) else ""


def _ephemeral(text: str) -> Reply:
    return Reply.of(200, {"response_type": "ephemeral", "text": text})


def _progress(patch: NotePatch) -> str:
    """What to say about a state; empty if nothing."""

    def link(words: str) -> str:
        return f"<{patch.link}|{words}>" if patch.link else words

    match patch.status:
        case "queued":
            return f"Queued. {link('Listen live')} as soon as it begins."
        case "live":
            return f"Being read aloud now: {link('listen live')}."
        case "done":
            length = f" ({Seconds(patch.duration_s).clock})" if patch.duration_s else ""
            return f"Read aloud{length}: {link('listen to the recording')}."
        case "failed":
            return f"Not read aloud. {escape(reason(patch.error or '', 'en'))}"
        case None:
            return ""


def _is_ours(message: dict[str, Any], key: str | None = None) -> bool:
    metadata = message.get("metadata") or {}
    if metadata.get("event_type") != MARK:
        return False
    return key is None or (metadata.get("event_payload") or {}).get("note") == key


def _time(ts: str) -> datetime | None:
    try:
        return datetime.fromtimestamp(float(ts), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _complaint(answer: Answer) -> ConnectorError | None:
    """Slack says no in the body of a 200: `{"ok": false, "error": "not_in_channel"}`."""
    content = answer.content or {}
    if answer.status != 200 or content.get("ok") is not False:
        return None
    code = str(content.get("error", ""))[:60]
    if code in _BUSY:
        return ToolUnavailable(f"Slack answered {code}", after_s=answer.wait_s)
    message = f"Slack answered {code}: {_CURES[code]}" if code in _CURES else f"Slack: {code}"
    if content.get("needed"):
        message += f" ({str(content['needed'])[:60]})"
    return ToolRefused(message, code=code)
