"""What operators do by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import episode_view, models, operate
from pipeline.episodes import produce
from pipeline.errors import NotFound, Refused
from pipeline.settings import Settings
from tests.pipeline.house import House, open_house


@pytest.fixture
def house(tmp_path: Path, sqlite_template: Path) -> Iterator[House]:
    with open_house(tmp_path, sqlite_template, durable_after_s=0) as house:
        yield house


def test_an_episode_is_stopped_once_and_the_stop_is_written_down(house: House) -> None:
    key = house.accept("Words.").accepted.episode

    assert operate.stop_episode(house.services, key, actor="cli:ann") is True
    assert operate.stop_episode(house.services, key, actor="cli:ann") is False
    assert house.row(key).state == "cancelled"
    (entry,) = house.all(models.audit)
    assert (entry.actor, entry.action, entry.object) == ("cli:ann", "stop", key)


def test_a_dead_episode_comes_back_with_all_its_tries(house: House) -> None:
    key = house.accept("Words.").accepted.episode
    house.change(
        models.episode,
        models.episode.c.key == key,
        state="dead", tries=3, crash_count=3, error="x", error_code="x", queue="quarantine",
    )  # fmt: skip
    operate.revive(house.services, key, actor="cli:ann")
    produce(house.services, house.hold())
    row = house.row(key)

    assert (row.state, row.tries, row.crash_count, row.error) == ("done", 0, 0, None)
    assert [one.action for one in house.all(models.audit)] == ["revive"]


def test_a_finished_episode_is_spoken_anew_only_when_asked(house: House) -> None:
    key = house.accept("Words.").accepted.episode
    produce(house.services, house.hold())

    with pytest.raises(Refused, match="--new-take"):
        operate.revive(house.services, key, actor="cli:ann")
    operate.revive(house.services, key, actor="cli:ann", new_take=True)
    produce(house.services, house.hold())

    assert (house.row(key).state, house.row(key).take) == ("done", 2)
    assert len(house.all(models.recording)) == 8
    shown = episode_view.show(house.services, key)["recordings"]["mp3"]["object"]
    assert shown == episode_view.file_of(house.database, key, "mp3").object_key
    assert "-2." in shown, "listeners get the newest take"


def test_an_episode_in_work_is_not_revived(house: House) -> None:
    key = house.accept("Words.").accepted.episode
    house.claim()

    with pytest.raises(Refused, match="synthesising"):
        operate.revive(house.services, key, actor="cli:ann")


def test_an_unknown_episode_is_not_found(house: House) -> None:
    for action in (operate.stop_episode, operate.revive):
        with pytest.raises(NotFound, match="ses_none"):
            action(house.services, "ses_none", actor="cli:ann")


def test_an_examination_names_what_is_wrong_and_how_to_mend_it(tmp_path: Path) -> None:
    (tmp_path / "connectors.toml").write_text('[endpoint.x]\nconnector = "webhok"\n')
    findings = operate.examine(Settings(data=tmp_path, engine="tone"))

    wrong = [text for is_good, text in findings if not is_good]
    assert any("webhook" in text for text in wrong)
    assert any("tone" in text for is_good, text in findings if is_good)
