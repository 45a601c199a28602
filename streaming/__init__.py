"""Live listening: the log of what is spoken, and the gateway that brings it to listeners.

Workers write with `session.LiveSession` into a `chunk_log.ChunkLog`; `gateway.Gateway` serves it to
browsers and to `client.Listening`. Nothing here knows notes, engines, settings or SQL.
"""
