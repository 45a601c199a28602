"""Everything `streaming` raises.

StreamingError
├── BadFrame            bytes that are no frame of ours
├── TokenError          a link token that opens nothing
│   ├── BadToken        malformed, unknown key or wrong signature
│   ├── BadTicket       unknown, too late, or for another stream
│   ├── TokenExpired    signed by us, too old
│   └── LinkRevoked     signed by us, switched off or unknown to the table of links
├── LogError            the chunk log did not take or give an entry
│   ├── Fenced          another owner has taken the session over
│   ├── LogLost         the log is not there, or not as this writer left it
│   ├── SessionExists   `create` for a session that has a log already
│   └── LogUnavailable  the store cannot be reached
├── NotDone             an order or a wish to speak that is refused, with its code on the wire
├── LedgerUnavailable   the store of shared limits and tickets cannot be reached
└── ListenError         what `client.Listening` tells its caller
"""


class StreamingError(Exception):
    """Root of the tree above."""


class BadFrame(StreamingError, ValueError):
    """Bytes that are no frame of `notecast.v1`; the message names the field."""


class TokenError(StreamingError):
    """A link token that opens nothing; `code` is the wire's error code."""

    code = "unauthenticated"


class BadToken(TokenError):
    """Malformed, signed with an unknown key, or altered."""


class BadTicket(TokenError):
    """Unknown, not used in time, or bound to another stream."""


class TokenExpired(TokenError):
    """Signed by us, and its time is over."""

    code = "token_expired"


class LinkRevoked(TokenError):
    """Signed by us, but the link was revoked or never entered in the table of links."""

    code = "forbidden"


class LogError(StreamingError):
    """The chunk log did not take or give an entry."""


class Fenced(LogError):
    """Another owner has taken the session over: this writer must stop, nothing was written."""


class LogLost(LogError):
    """The log of the session is gone or shorter than this writer left it (the store lost data).

    `LiveSession.rebuild`, or `LiveSession.create(..., rebuilt=True)` for a new owner, starts it
    again.
    """


class SessionExists(LogError):
    """`create` for a session that has a log already: take it over instead."""


class LogUnavailable(LogError):
    """The store of the log cannot be reached; the same call may be repeated."""


class NotDone(StreamingError):
    """An order (`control`) or a wish to speak (`say`) that cannot be followed.

    `code` is an error code of the protocol; `retry_ms` says when it may be tried again.
    """

    def __init__(self, code: str, message: str, *, retry_ms: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_ms = retry_ms


class LedgerUnavailable(StreamingError):
    """The store of shared limits and tickets cannot be reached; the same call may be repeated."""


class ListenError(StreamingError):
    """Listening ended for good.

    `code` is an error code of the protocol, or `connection`, `link` or `checksum` for faults that
    only the client can see; `url` is the recording, when the server named one.
    """

    def __init__(self, code: str, message: str, *, url: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.url = url
