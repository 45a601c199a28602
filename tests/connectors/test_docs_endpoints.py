"""Every `connectors.toml` printed in docs/connect-*.md can be used as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from connectors.fake.google_sheets import SECRET, FakeGoogleSheets
from connectors.fake.world import World
from connectors.registry import CONNECTORS
from pipeline.endpoints import load_endpoints

DOCS = Path(__file__).parents[2] / "docs"
NAMES = {
    "connect-google-sheets.md": "google_sheets",
    "connect-airtable.md": "airtable",
    "connect-notion.md": "notion",
    "connect-slack.md": "slack",
}


@pytest.mark.parametrize("name", NAMES)
def test_endpoint_of_the_docs_can_be_used(name: str, tmp_path: Path):
    text = (DOCS / name).read_text("utf-8")
    (block, *others) = re.findall(r"```toml\n(.*?)```", text, re.S)
    (tmp_path / "secrets").mkdir()
    key_file = FakeGoogleSheets(World()).key_file("http://127.0.0.1:1")
    (tmp_path / "secrets" / "sheets.json").write_text(key_file)
    path = tmp_path / "connectors.toml"
    path.write_text(block, "utf-8")
    env = dict.fromkeys(re.findall(r"env:(\w+)", text), SECRET)

    (endpoint,) = load_endpoints(path, env=env).values()

    assert endpoint.connector.name == NAMES[name]
    assert f"/hooks/{endpoint.address}" in text or name == "connect-airtable.md"
    for other in others:  # a table for the endpoint of another tool
        path.write_text(block.replace(endpoint.name, "team_sync") + other, "utf-8")
        assert load_endpoints(path, env=env)["team_sync"].notify


def test_links_between_the_docs_lead_somewhere():
    for name in NAMES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (DOCS / name).read_text("utf-8")):
            assert (DOCS / target).is_file(), f"{name}: {target}"


def test_named_connectors_exist():
    assert set(NAMES.values()) <= set(CONNECTORS)
