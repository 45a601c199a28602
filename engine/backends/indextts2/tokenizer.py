"""Text -> piece ids: one ideograph at a time, then SentencePiece."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from engine.backends.indextts2.config import GptConfig
from engine.backends.indextts2.errors import UnsupportedModel

SPACE = "\u2581"  # how SentencePiece writes the start of a word
_CJK = re.compile(
    "([\u1100-\u11ff\u2e80-\ua4cf\ua840-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff65-\uffdc"
    "\U00020000-\U0002ffff])"
)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as the model reads it.

    Attributes:
        pieces: for people.
        ids: for the model, as many.
        unknown: pieces the vocabulary lacks; they are lost or garbled in speech.
    """

    pieces: tuple[str, ...]
    ids: tuple[int, ...]
    unknown: tuple[str, ...]


def split_cjk(text: str) -> str:
    """Set every ideograph apart by spaces, upper-case the rest: `你好world` -> `你 好 WORLD`."""
    return " ".join(part.strip().upper() for part in _CJK.split(text) if part.strip())


class Tokenizer:
    """The release's `bpe.model`.

    Raises:
        UnsupportedModel: it has more pieces than the model has embeddings.
    """

    def __init__(self, path: Path, cfg: GptConfig) -> None:
        import sentencepiece  # the rest of this file needs none

        self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        if self._model.vocab_size() > cfg.text_tokens + 1:
            raise UnsupportedModel(
                f"{path} has {self._model.vocab_size()} pieces, the model {cfg.text_tokens} of them"
            )
        self._unknown = self._model.unk_id()
        self._marks = {cfg.start_text, cfg.stop_text}

    def encode(self, text: str) -> Tokens:
        """Pieces and ids of a normalised text."""
        pieces = tuple(self._model.encode(split_cjk(text), out_type=str))
        ids = tuple(int(self._model.piece_to_id(piece)) for piece in pieces)
        lost = tuple(
            piece
            for piece, i in zip(pieces, ids, strict=True)
            if i == self._unknown or i in self._marks
        )
        return Tokens(pieces, ids, lost)

    def has(self, token: str) -> bool:
        """Whether a word (`HANG2`) is one piece of the vocabulary."""
        pieces = [p for p in self._model.encode(token, out_type=str) if p != SPACE]
        return len(pieces) == 1 and int(self._model.piece_to_id(pieces[0])) != self._unknown
