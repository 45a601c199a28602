"""The embedded default voice: CPU, offline, Kokoro-82M and hibari behind one backend.

Nothing heavy is imported before it is needed: a process that only plans never loads the model
runtime.
"""

from engine.backends.kokoro.backend import Kokoro

__all__ = ["Kokoro"]
