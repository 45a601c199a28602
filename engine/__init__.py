"""Text in, audio out: no notes, no SQL, no sockets.

`make_backend(name)` builds a voice, `Engine` speaks with it; `engine.base` is the contract.
"""

from engine.backends import make_backend
from engine.base import AudioChunk, Controls, SpeechRequest, Turn, Voice
from engine.engine import Engine
from engine.errors import EngineError

__all__ = [
    "AudioChunk",
    "Controls",
    "Engine",
    "EngineError",
    "SpeechRequest",
    "Turn",
    "Voice",
    "make_backend",
]
