"""Google Sheets: a script in the sheet tells us about ready rows; we read and write through REST.

The script (docs/google-sheets.gs) signs like any Standard Webhooks sender. Rows have no id in the
API and their numbers move, so the script gives each a key in a column of its own. Every batch reads
the header again and finds rows by key; every write brings the key back in its answer, and one that
hit another row, because rows moved meanwhile, is undone and repeated.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from connectors.base import (
    Budget,
    Call,
    Column,
    Cursor,
    Hook,
    Note,
    NoteEvent,
    NotePatch,
    NoteRef,
    Page,
)
from connectors.cells import text_of
from connectors.errors import (
    ConnectorError,
    Malformed,
    ToolRefused,
    ToolUnavailable,
    WrongColumn,
    nearest,
)
from connectors.fields import (
    Audio,
    Link,
    OutputCell,
    Seconds,
    TableConfig,
    TableConnector,
    Text,
    note_from,
    output_cells,
)
from connectors.google_account import ServiceAccount, read_key_file
from connectors.http import Answer, Api, path_of
from connectors.payload import ApiUrl, Key, parse_json, validate
from connectors.payload import Text as LongText
from connectors.sheet_view import Stray, View
from connectors.signing import verify_webhook, webhook_key

log = logging.getLogger(__name__)

WRITE_TRIES = 3
MAX_QUERY = 6_000  # characters of an address; a tab's name may be long, and is there once a range

_GOOGLE = "https://sheets.googleapis.com"


class _Data(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    sheet: Key
    tab: Key
    key: Key = Field(min_length=1)
    values: dict[LongText, LongText | int | float | bool | None]


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    type: Literal["row.ready"]
    timestamp: datetime | None = None
    data: _Data


class GoogleSheets(TableConnector):
    """One tab of one sheet, through a service account that the sheet is shared with."""

    name: ClassVar[str] = "google_sheets"

    class Secrets(BaseModel):
        """`webhook`: current and previous secret; `service_account`: the key file's text."""

        model_config = ConfigDict(extra="forbid", frozen=True)
        webhook: list[SecretStr] = Field(min_length=1, max_length=4)
        service_account: SecretStr

        @field_validator("webhook")
        @classmethod
        def _readable(cls, secrets: list[SecretStr]) -> list[SecretStr]:
            for secret in secrets:
                webhook_key(secret.get_secret_value())
            return secrets

        @field_validator("service_account")
        @classmethod
        def _complete(cls, text: SecretStr) -> SecretStr:
            read_key_file(text.get_secret_value())
            return text

    class Config(TableConfig):
        """`sheet` as in the address: `docs.google.com/spreadsheets/d/SHEET/edit`."""

        secrets: GoogleSheets.Secrets
        sheet: str = Field(pattern=r"^[A-Za-z0-9_-]{5,100}$")
        tab: str = Field(min_length=1, max_length=100)
        key: str = Field(default="notecast_id", min_length=1, max_length=100)
        base_url: ApiUrl = _GOOGLE

    def __init__(self, endpoint: str, config: Config) -> None:
        super().__init__(endpoint, config)
        self._keys = [webhook_key(secret.get_secret_value()) for secret in config.secrets.webhook]
        self._sheet = config.sheet
        self._tab = config.tab
        self._key = config.key
        self._account = ServiceAccount(config.secrets.service_account.get_secret_value())
        complaint = functools.partial(_complaint, email=self._account.email, tab=config.tab)
        self._api = Api(
            config.base_url, name="Google Sheets", auth=self._account, complaint=complaint
        )
        self._header: tuple[str, ...] = ()

    # the door ----------------------------------------------------------------------------------

    def verify(self, hook: Hook, *, now: datetime) -> bytes:
        verify_webhook(self._keys, hook.headers, hook.body, now=now)
        return hook.body

    def events(self, body: bytes, hook: Hook) -> list[NoteEvent]:
        """The script sends the whole row as the sheet shows it."""
        message = validate(_Message, parse_json(body))
        data = message.data
        if data.sheet != self._sheet:
            raise Malformed("/data/sheet", "/data/sheet: this endpoint belongs to another sheet")
        if data.tab != self._tab:
            raise Malformed("/data/tab", f"/data/tab: this endpoint belongs to {self._tab!r}")
        ref = NoteRef(self.endpoint, self._sheet, self._tab, data.key)
        note = note_from(self.table, ref, data.values, message.timestamp)
        msg_id = hook.headers.get("webhook-id") or hashlib.sha256(body).hexdigest()
        return [NoteEvent(msg_id, ref, note=note, occurred_at=message.timestamp)]

    # reading -----------------------------------------------------------------------------------

    def read(self, refs: list[NoteRef]) -> Iterator[Note]:
        """Two calls for any number of rows; one more if rows move in between."""
        wanted = {ref.key: ref for ref in refs}
        for _ in range(WRITE_TRIES):
            view = self._look(self._key)
            numbers = {key: view.number(key) for key in wanted if key in view.rows}
            rows = self._rows(view, list(numbers.values()))
            found = [text_of(row.get(self._key)).strip() for row in rows]
            if found == list(numbers):
                break
        else:
            raise ToolUnavailable("Google Sheets: the rows keep moving")
        for key, row in zip(numbers, rows, strict=True):
            yield note_from(self.table, wanted[key], row)

    def backfill(self, cursor: Cursor) -> Iterator[Page]:
        """Ready rows that have a key, in one page; the script gives keys to rows without one."""
        walk = int((cursor.value or {}).get("walk", 0)) + 1
        trigger, output = self.table.trigger, self.table.output
        view = self._look(self._key, trigger.column, *([output.link] if output.link else []))
        shows_state = output.status == trigger.column
        events, nameless = [], 0
        for row in view.all:
            cells = row.cells
            is_new = shows_state or not cells.get(output.link)
            if not (trigger.fits(cells[trigger.column]) and is_new):
                continue
            if view.rows.get(row.key) is not row:
                nameless += 1
                continue
            # A row that stays ready is looked at again with every sixth walk, not with each.
            key = f"walk/{row.key}/{walk // 6}"[:200]
            events.append(NoteEvent(key, self._ref(row.key)))
        if nameless:
            log.warning(
                "ready rows without a key of their own: is the script installed?",
                extra={"endpoint": self.endpoint, "rows": nameless},
            )
        yield Page(tuple(events), Cursor({"walk": walk}), is_last=True)

    def columns(self) -> Sequence[Column]:
        """The first row of the tab."""
        (header,) = self._get(["1:1"])
        names = [text_of(cell) for cell in (header[0] if header else [])]
        return [Column(name, name, "text") for name in dict.fromkeys(names) if name]

    def sample(self) -> Note | None:
        """The first ready row, else the first with a text."""
        view = self._look(self._key, self.table.trigger.column)
        ready = [row for row in view.all if self.table.trigger.fits(row.cells.get(self._trigger))]
        for row in [*ready, *view.all][:20]:
            (cells,) = self._rows(view, [row.number])
            note = note_from(self.table, self._ref(row.key), cells)
            if note.text:
                return note
        return None

    def problems(self) -> list[str]:
        """As for every table; and a key column, and no two columns of one name that we use."""
        found = super().problems()
        names = [column.name for column in self.schema()]
        if self._key not in names:
            found.append(
                f"key: the tab has no column {self._key!r} for the keys of rows; add an empty one"
            )
        elif self._look(self._key).doubled:
            found.append("two rows have the same key, one is a copy; clear the copy's key")
        (header,) = self._get(["1:1"])
        shown = [text_of(cell) for cell in (header[0] if header else [])]
        config = self.table
        used = {self._key, config.trigger.column, *config.output.columns().values()}
        used |= {name for _, source in config.fields.sources() for name in source.columns}
        found += [
            f"two columns are named {name!r}; rename one"
            for name in sorted(used)
            if shown.count(name) > 1
        ]
        return found

    # writing -----------------------------------------------------------------------------------

    def write_back(self, ref: NoteRef, patch: NotePatch) -> None:
        """Write the output cells of a row as they are, never as formulas.

        Raises:
            ToolRefused: the row is gone, or two rows have its key.
        """
        cells = output_cells(self.table, patch)
        values = {column: _written(cell) for column, cell in cells.items()}
        stray: Stray | None = None
        for _ in range(WRITE_TRIES):
            view = self._look(self._key, *self.table.output.columns().values())
            repairs = stray.repairs(view) if stray else []
            row = view.find(ref.key)
            if row is None:
                self._write(repairs)
                raise ToolRefused("Google Sheets: the row is gone", code="row_gone")
            writes = [(row.number, view.at[column], value) for column, value in values.items()]
            hit = self._write([*repairs, *writes], back=(row.number, view.at[self._key]))
            if hit == ref.key:
                return
            stray = Stray(hit, values, view)
            log.info("the row moved while it was written", extra={"endpoint": self.endpoint})
        raise ToolUnavailable("Google Sheets: the rows keep moving")

    def bucket(self, ref: NoteRef | None, call: Call = "write") -> Budget:
        """The account may read and write 60 times a minute each.

        A write-back looks once and writes once, a read of rows looks twice: 40 + 2 * 8 = 56.
        """
        per_min = 40 if call == "write" else 8
        return Budget(f"google_sheets/{self._account.email}/{call}", per_min=per_min, burst=4)

    # calls -------------------------------------------------------------------------------------

    @property
    def _trigger(self) -> str:
        return self.table.trigger.column

    def _look(self, *names: str) -> View:
        """Some columns of the whole tab, with the header they belong to, in one call.

        Letters are guessed from the last header and believed only if the header is still the same.
        """
        for _ in range(WRITE_TRIES):
            at = {name: self._header.index(name) for name in names if name in self._header}
            if not self._header or len(at) < len(set(names)):
                at = {}
            columns = [f"{_letters(n)}:{_letters(n)}" for n in at.values()]
            header, *cells = self._get(["1:1", *columns])
            fresh = tuple(text_of(cell) for cell in (header[0] if header else []))
            if at and fresh == self._header:
                return View.of(self._key, fresh, at, cells)
            self._header = fresh
            for name in names:
                if name not in fresh:
                    near = nearest(name, (other for other in fresh if other))
                    message = f"Google Sheets: the tab {self._tab!r} has no column {name!r}; {near}"
                    raise WrongColumn(message)
        raise ToolUnavailable("Google Sheets: the columns keep moving")

    def _rows(self, view: View, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Whole rows by their numbers, as column -> cell."""
        if not numbers:
            return []
        found = self._get([f"{number}:{number}" for number in numbers])
        rows = []
        for cells in found:
            row: dict[str, Any] = {}
            padded = [*(cells[0] if cells else []), *[""] * len(view.header)]
            for name, cell in zip(view.header, padded, strict=False):
                row.setdefault(name, cell)
            rows.append(row)
        return rows

    def _get(self, ranges: Sequence[str]) -> list[list[list[Any]]]:
        """Values of ranges of the tab: for each its rows, ragged, as the API gives them."""
        path = path_of("v4", "spreadsheets", self._sheet) + "/values:batchGet"
        size = len(quote(self._range("1000000:1000000"))) + len("&ranges=")
        most = max(MAX_QUERY // size, 8)
        found: list[list[list[Any]]] = []
        for at in range(0, len(ranges), most):
            params = {
                "ranges": [self._range(one) for one in ranges[at : at + most]],
                "majorDimension": "ROWS",
            }
            answer = self._trying(self._api.get, path, params=params)
            found += [list(one.get("values") or []) for one in answer.get("valueRanges") or ()]
        return found

    def _write(
        self, writes: Sequence[tuple[int, int, str]], back: tuple[int, int] | None = None
    ) -> str:
        """Write cells (row, column, text) in one call; gives the text of the cell `back`.

        That cell is written with null, which leaves it as it is but has the answer show it.
        """
        if not writes and back is None:
            return ""
        data: list[dict[str, Any]] = [
            {"range": self._cell(row, column), "values": [[text]]} for row, column, text in writes
        ]
        if back is not None:
            data.append({"range": self._cell(*back), "values": [[None]]})
        path = path_of("v4", "spreadsheets", self._sheet) + "/values:batchUpdate"
        body = {"valueInputOption": "RAW", "includeValuesInResponse": True, "data": data}
        responses = self._trying(self._api.post, path, body).get("responses") or []
        if back is None:
            return ""
        shown = responses[-1].get("updatedData") if len(responses) == len(data) else None
        if shown is None:  # the answer may leave out what it did not write
            (found,) = self._get([f"{_letters(back[1])}{back[0]}"])
        else:
            found = shown.get("values") or []
        return text_of(found[0][0]) if found and found[0] else ""

    def _trying(
        self, call: Callable[..., dict[str, Any]], *args: Any, **options: Any
    ) -> dict[str, Any]:
        """Call, once more with a new token if Google does not know this one any more."""
        try:
            return call(*args, **options)
        except ToolRefused as error:
            if error.code != "UNAUTHENTICATED":
                raise
        self._account.forget()
        return call(*args, **options)

    def _range(self, a1: str) -> str:
        quoted = self._tab.replace("'", "''")
        return f"'{quoted}'!{a1}"

    def _cell(self, row: int, column: int) -> str:
        return self._range(f"{_letters(column)}{row}")

    def _ref(self, key: str) -> NoteRef:
        return NoteRef(self.endpoint, self._sheet, self._tab, key)


GoogleSheets.Config.model_rebuild()


def _written(cell: OutputCell) -> str:
    match cell:
        case Text(text):
            return text
        case Link(url) | Audio(url):
            return url
        case Seconds():
            return cell.clock


def _letters(column: int) -> str:
    """0 -> A, 25 -> Z, 26 -> AA."""
    letters = ""
    column += 1
    while column:
        column, rest = divmod(column - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def _complaint(answer: Answer, *, email: str, tab: str) -> ConnectorError | None:
    """Google's `{"error": {"code": 403, "status": "PERMISSION_DENIED", "message": ...}}`."""
    if answer.status < 400 or answer.status == 429 or answer.status >= 500:
        return None
    error = (answer.content or {}).get("error")
    error = error if isinstance(error, dict) else {}
    code = str(error.get("status") or answer.status)[:60]
    message = str(error.get("message", ""))
    if answer.status == 400 and "parse range" in message:
        return WrongColumn(f"Google Sheets: the sheet has no tab {tab!r}", code=code)
    if answer.status == 400 and "exceeds grid limits" in message:
        return ToolUnavailable("Google Sheets: rows were deleted meanwhile", after_s=1.0)
    cure = "refused"
    if answer.status == 401:
        cure = "does not accept the service account's token; make a new key file"
    elif answer.status == 403 and "has not been used" in message:
        cure = "the Google Sheets API is off in the account's project; switch it on"
    elif answer.status == 403:
        cure = f"share the sheet with {email} as editor"
    elif answer.status == 404:
        cure = "no sheet has this id; take it from the sheet's address"
    return ToolRefused(f"Google Sheets answered {answer.status} {code}: {cure}", code=code)
