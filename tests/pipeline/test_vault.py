"""Secrets that tools handed us: sealed, pending until a person says yes, and when each was used."""

from __future__ import annotations

import pytest

from connectors.signing import secret_label
from pipeline import models, vault
from pipeline.database import Database
from pipeline.errors import Misconfigured, NotFound, Refused
from pipeline.vault import Vault
from tests.pipeline.conftest import Seed


@pytest.fixture
def box() -> Vault:
    return Vault("a key of this installation")


@pytest.fixture
def endpoint_id(seed: Seed) -> str:
    return seed.endpoint(seed.tenant())


def keep(database: Database, box: Vault, endpoint_id: str, *secrets: str) -> None:
    for secret in secrets:
        with database.write() as connection:
            vault.keep_pending(database, connection, box, endpoint_id, secret)


def states(database: Database, box: Vault) -> dict[str, object]:
    with database.read() as connection:
        return dict(vault.states(connection, box))


def test_a_sealed_text_opens_for_its_endpoint_only(box: Vault) -> None:
    sealed = box.seal("hush", "endpoint-1")

    assert "hush" not in sealed
    assert box.open(sealed, "endpoint-1") == "hush"
    with pytest.raises(Misconfigured, match="does not open"):
        box.open(sealed, "endpoint-2")
    with pytest.raises(Misconfigured, match="seal-key"):
        Vault("another key").open(sealed, "endpoint-1")


def test_what_a_handshake_brought_is_not_used_before_a_person_says_yes(
    database: Database, box: Vault, endpoint_id: str
) -> None:
    keep(database, box, endpoint_id, "secret_one")
    assert states(database, box) == {}

    with database.write() as connection:
        assert vault.accept(connection, endpoint_id) == secret_label("secret_one")
    assert states(database, box) == {endpoint_id: {"accepted": ["secret_one"]}}


def test_a_new_secret_stands_before_the_old_one_until_that_is_retired(
    database: Database, box: Vault, endpoint_id: str
) -> None:
    for secret in ("secret_old", "secret_new"):
        keep(database, box, endpoint_id, secret)
        with database.write() as connection:
            vault.accept(connection, endpoint_id)
    assert states(database, box) == {endpoint_id: {"accepted": ["secret_new", "secret_old"]}}

    with database.write() as connection:
        vault.retire(connection, endpoint_id, secret_label("secret_old"))
        with pytest.raises(NotFound, match="no kept secret"):
            vault.retire(connection, endpoint_id, "ffffffff")
    assert states(database, box) == {endpoint_id: {"accepted": ["secret_new"]}}


def test_a_flood_of_handshakes_keeps_the_newest_few(
    database: Database, box: Vault, endpoint_id: str
) -> None:
    keep(database, box, endpoint_id, *(f"secret_{n}" for n in range(12)))
    with database.read() as connection:
        rows = connection.execute(models.endpoint_secret.select()).all()

    assert {row.label for row in rows} == {secret_label(f"secret_{n}") for n in range(7, 12)}
    with database.write() as connection, pytest.raises(Refused, match="several secrets"):
        vault.accept(connection, endpoint_id)


def test_nothing_pending_is_told(database: Database, endpoint_id: str) -> None:
    with database.write() as connection, pytest.raises(NotFound, match="handshake again"):
        vault.accept(connection, endpoint_id)


def test_a_handshake_that_comes_again_does_not_touch_the_active_secret(
    database: Database, box: Vault, endpoint_id: str
) -> None:
    keep(database, box, endpoint_id, "secret_one")
    with database.write() as connection:
        vault.accept(connection, endpoint_id)
    keep(database, box, endpoint_id, "secret_one", "secret_foreign")

    assert states(database, box) == {endpoint_id: {"accepted": ["secret_one"]}}


def test_each_secret_remembers_when_it_proved_something(
    database: Database, endpoint_id: str
) -> None:
    for _ in range(2):
        with database.write() as connection:
            vault.verified(database, connection, endpoint_id, {"aaaaaaaa"})
    with database.read() as connection:
        (row,) = connection.execute(models.endpoint_secret.select()).all()

    assert (row.label, row.sealed, row.state) == ("aaaaaaaa", None, "active")
    assert row.verified_ms is not None
