"""Text in, audio out: no notes, no SQL, no sockets.

`backends.make_backend(name)` builds a voice, `engine.Engine` speaks with it; `base` is the
contract. Nothing is imported here, so that a process without a voice loads no numpy.
"""
