"""Inline readings that writers may put into a text, and the scripts they stand in."""

from __future__ import annotations

import re

HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
KANA = "\u3041-\u3096\u30a1-\u30fa\u30fc"

PINYIN_NOTE = re.compile(rf"(?P<char>[{HAN}])\[(?P<syllable>[A-Za-zü:]{{1,8}})(?P<tone>[1-5])\]")
"""`字[pin1]`: one character, its syllable (v or ü for ü) and its tone, 5 is neutral.

A note over several characters is written one bracket a character: `重[chong2]新[xin1]`.
"""
PHONEME_NOTE = re.compile(r"\[(?P<word>[^\[\]\n]{1,80})\]\(/(?P<phonemes>[^()/\n]{1,120})/\)")
"""`[word](/phonemes/)`: a word and how it is said, in the engine's phoneme alphabet."""

NOTE = re.compile(PINYIN_NOTE.pattern + "|" + PHONEME_NOTE.pattern)
"""Either of the two."""
