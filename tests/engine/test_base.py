"""engine/base.py: what callers and backends rely on."""

from dataclasses import FrozenInstanceError

import pytest

from engine.base import NEUTRAL, Backend, Controls, SpeechRequest, Turn


def test_neutral_controls_are_the_default():
    assert Turn("x").controls == NEUTRAL == Controls()


def test_a_request_cannot_change_after_it_was_made():
    request = SpeechRequest(turns=(Turn("x"),))

    with pytest.raises(FrozenInstanceError):
        request.live = True  # type: ignore[misc]


def test_equal_requests_are_one_key():
    assert len({SpeechRequest((Turn("x"),)), SpeechRequest((Turn("x"),))}) == 1


def test_a_backend_without_its_abstract_methods_cannot_be_made():
    class Half(Backend):
        pass

    with pytest.raises(TypeError, match="step"):
        Half()  # type: ignore[abstract]
