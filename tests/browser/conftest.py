"""One browser and one stage for all tests here; each test gets tabs of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.browser.cdp import Browser, Tab, find_chromium
from tests.browser.stage import Stage

# What a browser says by itself about a wire that a test has cut.
CUT_WIRE = ("WebSocket connection to", "net::ERR_", "/v1/tickets")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium here; `apt-get install chromium` brings one")
    browser = Browser(program)
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("recordings"))
    yield stage
    stage.close()


@pytest.fixture
def new_tab(browser: Browser, stage: Stage) -> Iterator[Callable[[], Tab]]:
    """Opens tabs; none of them may have had anything to complain about."""
    tabs: list[Tab] = []

    def new() -> Tab:
        tabs.append(browser.tab())
        tabs[-1].emulate(width=1280, height=800)
        return tabs[-1]

    yield new
    stage.mend_wire()
    complaints = [line for tab in tabs for line in tab.complaints()]
    for tab in tabs:
        tab.close()
    assert [line for line in complaints if not any(known in line for known in CUT_WIRE)] == []


@pytest.fixture
def tab(new_tab: Callable[[], Tab]) -> Tab:
    return new_tab()
