"""Hints between processes, over a real Valkey and within one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pipeline.signals import LocalSignals, RedisSignals, Signals


def wait_until(is_true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline, "never became true"
        time.sleep(0.01)


def heard_by(signals: Signals, other: Signals) -> None:
    """Each topic reaches those who listen to it, also who began later."""
    one: list[Any] = []
    two: list[Any] = []
    signals.listen("orders", one.append)

    def first() -> bool:
        other.publish("orders", episode="e", number=1)
        return bool(one)

    wait_until(first)  # whoever listens may need a moment to begin
    signals.listen("effects", two.append)

    def second() -> bool:
        other.publish("effects", ok=True)
        return bool(two)

    wait_until(second)
    assert one[0] == {"episode": "e", "number": 1}
    assert two[0] == {"ok": True}
    assert all("ok" not in fields for fields in one)


def test_signals_cross_processes_over_valkey(valkey_url: str) -> None:
    signals, other = RedisSignals(valkey_url), RedisSignals(valkey_url)
    try:
        heard_by(signals, other)
    finally:
        signals.close()
        other.close()


def test_signals_stay_in_one_process_where_there_is_no_server() -> None:
    signals = LocalSignals()
    heard_by(signals, signals)


def test_a_listener_that_fails_does_not_silence_the_others(valkey_url: str) -> None:
    signals, heard = RedisSignals(valkey_url), []

    def fails(_fields: dict[str, Any]) -> None:
        raise RuntimeError("nobody expected this")

    try:
        signals.listen("orders", fails)
        signals.listen("orders", heard.append)

        def said() -> bool:
            signals.publish("orders", n=1)
            return bool(heard)

        wait_until(said)
    finally:
        signals.close()


def test_publishing_without_a_server_is_no_error(tmp_path: Any) -> None:
    signals = RedisSignals(f"unix://{tmp_path}/nobody.sock")
    signals.listen("orders", lambda _fields: None)
    signals.publish("orders", n=1)
    signals.close()
