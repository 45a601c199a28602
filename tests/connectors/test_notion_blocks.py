"""Blocks of a page as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from connectors.fake.notion import rich
from connectors.notion_blocks import markdown

Block = dict[str, Any]


def block(kind: str, *pieces: Any, holds: str = "", **content: Any) -> Block:
    """A block with rich text; `holds` is the id under which its inner blocks are."""
    text = [rich(piece) if isinstance(piece, str) else piece for piece in pieces]
    return {
        "id": holds,
        "type": kind,
        "has_children": bool(holds),
        kind: {"rich_text": text, **content},
    }


def text_of(tree: dict[str, list[Block]]) -> str:
    def children(block_id: str) -> Iterator[Block]:
        yield from tree[block_id]

    return markdown(children, "page")


def test_headings_paragraphs_and_lists():
    page = [
        block("heading_2", "Plan"),
        block("bulleted_list_item", "outer", holds="outer"),
        block("numbered_list_item", "first"),
        block("to_do", "ship ", {"type": "mention", "plain_text": "@Alice"}, checked=True),
        block("to_do", "rest", checked=False),
        block("paragraph", "Then lunch."),
        block("paragraph", "Then coffee."),
    ]

    assert text_of({"page": page, "outer": [block("bulleted_list_item", "inner")]}) == (
        "## Plan\n\n- outer\n  - inner\n1. first\n- [x] ship Alice\n- [ ] rest\n\n"
        "Then lunch.\n\nThen coffee."
    )


def test_quotes_callouts_and_toggles():
    page = [
        block("quote", "two\nlines"),
        block("callout", rich("Mind the gap ", bold=True), "here"),
        block("toggle", "More", holds="more"),
    ]

    assert text_of({"page": page, "more": [block("paragraph", "hidden")]}) == (
        "> two\nlines\n\n**Mind the gap** here\n\nMore\nhidden"
    )


def test_tables_keep_their_header():
    rows = [[[rich("Who")], [rich("What")]], [[rich("Bob")], [rich("a|b")]]]
    tree = {
        "page": [block("table", holds="table"), block("paragraph", "after")],
        "table": [block("table_row", cells=cells) for cells in rows],
    }

    assert text_of(tree) == "| Who | What |\n| --- | --- |\n| Bob | a/b |\n\nafter"


def test_links_keep_their_words():
    page = [
        block("paragraph", "see ", rich("the docs", href="https://a.example"), "."),
        block("paragraph", rich("https://b.example", href="https://b.example")),
    ]

    assert text_of({"page": page}) == "see [the docs](https://a.example).\n\nhttps://b.example"


def test_what_cannot_be_read_leaves_no_trace():
    page = [
        block("paragraph", "before"),
        block("image", type="external"),
        block("divider"),
        block("child_page", title="Sub", holds="never asked for"),
        block("unsupported"),
        block("something_new"),
        block("paragraph", "after"),
    ]

    assert text_of({"page": page}) == "before\n\nafter"


def test_deep_nesting_is_read_to_its_end():
    tree = {"page": [block("toggle", "0", holds="1")]}
    for n in range(1, 100):
        tree[str(n)] = [block("toggle", str(n), holds=str(n + 1))]
    tree["100"] = [block("paragraph", "bottom")]

    assert text_of(tree).endswith("98\n99\nbottom")
