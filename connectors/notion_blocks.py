"""What is written on a Notion page, block by block, as Markdown; pure but for fetching children."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from connectors.cells import text_of

Block = dict[str, Any]
Children = Callable[[str], Iterator[Block]]
"""The blocks in a page or block, by its id."""

_PREFIXES = {
    "heading_1": "# ",
    "heading_2": "## ",
    "heading_3": "### ",
    "bulleted_list_item": "- ",
    "numbered_list_item": "1. ",
    "quote": "> ",
}
_ITEMS = frozenset(("bulleted_list_item", "numbered_list_item", "to_do"))


def markdown(children: Children, page_id: str) -> str:
    """The text of a page; pictures, embeds and sub-pages are left out."""
    text = "\n".join(_lines(children, page_id, ""))
    return re.sub("\n{3,}", "\n\n", text).strip()


def _lines(children: Children, block_id: str, indent: str) -> Iterator[str]:
    """Markdown lines of the blocks in a block; an empty one wherever a list or a block ends."""
    was_item = False
    for row, block in enumerate(children(block_id)):
        kind = str(block.get("type", ""))
        if kind in ("child_page", "child_database", "unsupported"):
            continue
        is_item = kind in _ITEMS
        if row and (was_item != is_item or not (is_item or kind == "table_row")):
            yield ""
        was_item = is_item
        yield from (indent + line for line in _block(kind, block.get(kind) or {}, row))
        if block.get("has_children"):
            deeper = indent + "  " if is_item else indent
            yield from _lines(children, str(block["id"]), deeper)


def _block(kind: str, content: Mapping[str, Any], row: int) -> Iterator[str]:
    """Lines of one block without what is in it."""
    if kind == "table_row":
        cells = [_rich(cell).replace("|", "/") for cell in content.get("cells") or ()]
        yield f"| {' | '.join(cells)} |"
        if row == 0:
            yield f"|{' --- |' * len(cells)}"
        return
    text = _rich(content.get("rich_text") or ())
    if kind == "code":
        yield from ("```", text, "```")
    elif kind == "to_do":
        yield f"- [{'x' if content.get('checked') else ' '}] {text}"
    elif text:
        prefix = _PREFIXES.get(kind, "")
        lines = text.split("\n")
        yield prefix + lines[0]
        yield from lines[1:]


def _rich(pieces: Sequence[Mapping[str, Any]]) -> str:
    """Rich text as Markdown: bold and links; people by name."""
    parts = []
    for piece in pieces:
        text = text_of(piece)
        bare = text.strip()
        href = piece.get("href")
        if not bare:
            parts.append(text)
            continue
        shown = bare
        if href and piece.get("type") == "text" and href != bare:
            shown = f"[{bare}]({href})"
        if (piece.get("annotations") or {}).get("bold"):
            shown = f"**{shown}**"
        parts.append(text.replace(bare, shown, 1))
    return "".join(parts)
