from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import Misconfigured
from pipeline.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("NOTECAST_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_an_argument_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notecast.toml").write_text("port = 1\nlink_days = 2\nlook_s = 3.0\n")
    monkeypatch.setenv("NOTECAST_PORT", "11")
    monkeypatch.setenv("NOTECAST_LINK_DAYS", "12")
    settings = load_settings(port=111, host=None)

    assert (settings.port, settings.link_days, settings.look_s) == (111, 12, 3.0)
    assert settings.host == "127.0.0.1"


def test_the_file_of_the_data_directory_comes_before_the_one_beside_us(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "notecast.toml").write_text("port = 5\n")
    (tmp_path / "notecast.toml").write_text("port = 6\n")

    assert load_settings(data=data).port == 5


@pytest.mark.parametrize("where", ["environment", "file"])
def test_an_unknown_key_is_named_with_the_nearest_known_one(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "file":
        (tmp_path / "notecast.toml").write_text("lease_msec = 1\n")
    else:
        monkeypatch.setenv("NOTECAST_LEASE_MSEC", "1")

    with pytest.raises(Misconfigured, match=r"(?i)lease_msec.*did you mean .*lease_ms\?"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "many"),
        ("PORT", "70000"),
        ("ENGINE", "trumpet"),
        ("FORMATS", "mp3"),
        ("FORMATS", '["mp4"]'),
        ("LEASE_MS", "10"),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_with_its_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"NOTECAST_{name}", value)

    with pytest.raises(Misconfigured, match=f"(?i){name}"):
        load_settings()


def test_leases_that_would_run_out_between_two_renewals_are_refused() -> None:
    with pytest.raises(Misconfigured, match=r"renew_ms \(5000\).*lease_ms \(6000\)"):
        load_settings(lease_ms=6_000)
    assert load_settings(lease_ms=6_000, renew_ms=3_000).renew_ms == 3_000


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "notecast.toml").write_text("port = \n")

    with pytest.raises(Misconfigured, match=r"notecast\.toml"):
        load_settings()


def test_a_child_gets_exactly_what_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = load_settings(
        data=tmp_path,
        formats=("mp3", "wav"),
        warm=(),
        tone_faults=True,
        s3_secret_key="s3cret",
        look_s=0.5,
    )
    for name, value in given.environment().items():
        monkeypatch.setenv(name, value)

    assert load_settings() == given
    assert "NOTECAST_PORT" not in given.environment()


def test_secrets_are_not_shown() -> None:
    settings = Settings(s3_access_key="AKIA", s3_secret_key="hunter2")

    assert "hunter2" not in repr(settings)
    assert "AKIA" not in repr(settings)


def test_addresses_that_were_not_given_follow_from_the_others(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, host="0.0.0.0", port=81)

    assert settings.effective_public_url == "http://localhost:81"
    assert settings.effective_database_url == f"sqlite:///{tmp_path}/notecast.db"
    assert Settings(public_url="https://n.example/").effective_public_url == "https://n.example"
