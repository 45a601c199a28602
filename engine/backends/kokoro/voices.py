"""Kokoro's 54 voices, voices of the user's own, and blends.

A voice is a table [510, 256]: one style row per number of phonemes. The first half of a row is
timbre (it feeds the decoder), the second half manner (it feeds durations and pitch). Neighbouring
rows are nearly parallel, so the pack keeps a mean row and two rank-8 factors per voice (16-bit,
each column with its scale).
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.resources
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.base import Voice
from engine.errors import BadRequest, UnknownVoice

Floats = npt.NDArray[np.float32]

ROWS, WIDTH = 510, 256
TIMBRE = slice(0, 128)
MANNER = slice(128, 256)

HIBARI = "heart"
"""The one voice that is not Kokoro's: hibari's, English only."""

DEFAULTS = {
    "en": "af_heart",
    "zh": "zf_xiaoxiao",
    "ja": "jf_alpha",
    "es": "ef_dora",
    "fr": "ff_siwis",
    "it": "if_sara",
    "pt": "pf_dora",
    "hi": "hf_alpha",
}

_LANGS = {
    "a": "en",
    "b": "en",
    "e": "es",
    "f": "fr",
    "h": "hi",
    "i": "it",
    "j": "ja",
    "p": "pt",
    "z": "zh",
}
_ID = re.compile(r"[A-Za-z0-9_-]+")

Mix = tuple[tuple[str, float], ...]
"""Voice ids and their shares, which add up to 1."""


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One voice of the pack; `loudness_lufs` is that of its plain output."""

    voice: Voice
    loudness_lufs: float


class VoicePack:
    """Style rows by voice name. Tables are rebuilt on first use and kept (0.5 MB each)."""

    def __init__(self, own_tables: Path | None = None) -> None:
        """`own_tables`: a folder of `.npy` or `.bin`, float32 [510, 256] or [510, 1, 256]."""
        self._catalogue = _catalogue()
        self._own = _own_tables(own_tables)
        self._tables: dict[str, Floats] = {}
        self._factors: dict[str, npt.NDArray[np.generic]] = {}

    def voices(self) -> list[Voice]:
        """Every Kokoro voice, the user's own at the end."""
        own = [_own_voice(name) for name in self._own]
        return [entry.voice for entry in self._catalogue.values()] + own

    def parse(self, wanted: str) -> Mix:
        """Read a voice id or a blend (`af_heart:0.6,af_bella:0.4`; without shares: equal ones).

        Raises:
            UnknownVoice: names the nearest voices we have.
            BadRequest: shares that are not positive numbers.
        """
        shares: dict[str, float] = {}
        for part in wanted.split(","):
            name, _, share = part.partition(":")
            name = name.strip()
            self._check(name)
            shares[name] = shares.get(name, 0.0) + _share(share.strip(), wanted)
        total = sum(shares.values())
        return tuple((name, share / total) for name, share in shares.items())

    def lang(self, mix: Mix) -> str:
        """Primary language of the heaviest voice in a blend."""
        name = max(mix, key=lambda item: item[1])[0]
        return (
            self._catalogue[name].voice.lang if name in self._catalogue else _own_voice(name).lang
        )

    def is_british(self, mix: Mix) -> bool:
        """Is the heaviest voice one of the British ones?"""
        return max(mix, key=lambda item: item[1])[0].startswith("b")

    def row(self, mix: Mix, tokens: int) -> Floats:
        """(1, 256) style for a sentence of `tokens` phonemes."""
        at = min(max(tokens, 1), ROWS) - 1
        row = np.zeros(WIDTH, np.float32)
        for name, share in mix:
            row += self.table(name)[at] * np.float32(share)
        return row[None]

    def style(self, wanted: str, tokens: int, manner: str = "") -> Floats:
        """(1, 256): the timbre of `wanted` with its own manner, or with that of another voice."""
        style = self.row(self.parse(wanted), tokens)
        if manner:
            style = style.copy()
            style[:, MANNER] = self.row(self.parse(manner), tokens)[:, MANNER]
        return style

    def loudness_lufs(self, mix: Mix) -> float | None:
        """What the mix sounds like before levelling; None if a table of the user's own is in it."""
        if any(name not in self._catalogue for name, _ in mix):
            return None
        return sum(self._catalogue[name].loudness_lufs * share for name, share in mix)

    def table(self, name: str) -> Floats:
        """(510, 256).

        Raises:
            BadRequest: a table of the user's own has another shape or holds no numbers.
        """
        if name not in self._tables:
            own = self._own.get(name)
            self._tables[name] = self._unpack(name) if own is None else _read_table(own)
        return self._tables[name]

    def digest(self) -> str:
        """Changes with the pack and with the files of the user's own tables."""
        total = hashlib.sha256(_data("kokoro_voices.npz"))
        for name, path in self._own.items():
            total.update(name.encode() + path.read_bytes())
        return total.hexdigest()[:12]

    def _unpack(self, name: str) -> Floats:
        if not self._factors:
            with np.load(io.BytesIO(_data("kokoro_voices.npz")), allow_pickle=False) as pack:
                self._factors = {key: pack[key] for key in pack.files}
        at = int(np.flatnonzero(self._factors["ids"] == name)[0])
        mean, left, right, scale = (
            self._factors[key][at] for key in ("mean", "left", "right", "scale")
        )
        table: Floats = (left * scale) @ right.astype(np.float32) + mean
        return table

    def _check(self, name: str) -> None:
        known = [*self._catalogue, *self._own]
        if name in known:
            return
        near = (
            difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(DEFAULTS.values())[:3]
        )
        raise UnknownVoice(
            f"there is no voice {name!r}; the nearest are {', '.join(near)} "
            "(`notecast voices list` shows all)",
            field="voice",
        )


def _share(text: str, wanted: str) -> float:
    try:
        share = float(text) if text else 1.0
    except ValueError:
        share = 0.0
    if not 0.0 < share < float("inf"):
        raise BadRequest(
            f"voice {wanted!r}: the share {text!r} is not a positive number; "
            "write a blend as af_heart:0.6,af_bella:0.4",
            field="voice",
        )
    return share


def _data(name: str) -> bytes:
    return (importlib.resources.files("engine") / "data" / name).read_bytes()


def _catalogue() -> dict[str, CatalogueEntry]:
    rows = json.loads(_data("kokoro_voices.json"))
    return {
        row["id"]: CatalogueEntry(
            Voice(row["id"], row["name"], row["lang"], row["gender"], row["grade"]),
            row["loudness_lufs"],
        )
        for row in rows
    }


def _own_tables(folder: Path | None) -> dict[str, Path]:
    if folder is None or not folder.is_dir():
        return {}
    files = sorted(path for path in folder.iterdir() if path.suffix in (".npy", ".bin"))
    return {path.stem: path for path in files if _ID.fullmatch(path.stem)}


def _own_voice(name: str) -> Voice:
    """A name like `zf_mine` says language and gender, as upstream's do; others are English."""
    named = re.match(r"([abefhijpz])([fm])_", name)
    if named is None:
        return Voice(name, name, "en")
    return Voice(name, name[3:], _LANGS[named[1]], {"f": "female", "m": "male"}[named[2]])


def _read_table(path: Path) -> Floats:
    readers: dict[str, Callable[[Path], npt.NDArray[np.generic]]] = {
        ".npy": lambda file: np.load(file, allow_pickle=False),
        ".bin": lambda file: np.fromfile(file, np.float32),
    }
    try:
        table = readers[path.suffix](path).astype(np.float32).reshape(ROWS, WIDTH)
    except ValueError as error:
        raise BadRequest(
            f"voice table {path.name}: {error}; it must hold float32 [{ROWS}, {WIDTH}]",
            field="voice",
        ) from error
    if not np.isfinite(table).all():
        raise BadRequest(
            f"voice table {path.name} holds values that are not numbers", field="voice"
        )
    return table
