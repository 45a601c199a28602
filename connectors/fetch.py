"""Requests to addresses that came from a user: callback addresses, attachment links.

The danger is server-side request forgery (CWE-918): an address that leads back into our own
network. A name is resolved once, every answer must be public, and the connection goes to the very
address that was checked, so a name that changes its mind between check and use gains nothing.
Redirects are checked again by the same rule; proxies and `.netrc` of the environment are not used,
because a proxy would resolve the name for itself.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NameResolutionError
from urllib3.util.connection import create_connection

from connectors.errors import ToolRefused, ToolUnavailable
from connectors.http import retry_after_s

MAX_BYTES = 25 << 20
MAX_REDIRECTS = 3
TIMEOUT_S = 10.0
_PORTS = (443, 80)
_BLOCK_BYTES = 64 << 10

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Sequence[str]]

# What `is_global` of Python 3.11 lets through although it leads, or may lead, to a private place.
_NEVER = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments, RFC 6890
        "192.88.99.0/24",  # 6to4 relays, RFC 7526
        "224.0.0.0/4",
        "64:ff9b::/96",  # NAT64, RFC 6052
        "64:ff9b:1::/48",  # local NAT64, RFC 8215
        "2001::/32",  # Teredo, RFC 4380
        "2002::/16",  # 6to4, RFC 3056
        "fec0::/10",  # site-local, RFC 3879
        "ff00::/8",
    )
)


class UnsafeAddress(ToolRefused):
    """An address that leads, or may lead, into a private network; trying again changes nothing."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="unsafe_address")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole body and its media type, in lower case without parameters."""

    body: bytes
    content_type: str


def is_public(address: str, trusted: Collection[Network] = ()) -> bool:
    """Say whether an IP address is one of the public internet, or of a `trusted` network."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # with a scope, or no address at all
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if any(ip in network for network in trusted):
        return True
    return ip.is_global and not any(ip in network for network in _NEVER)


def resolve(host: str, port: int) -> list[str]:
    """Every address of a name, as the system's resolver gives them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in found))


class SafeSession(requests.Session):
    """A session for foreign addresses.

    Args:
        trusted: networks that may be reached although they are not public, on any port and over
            plain http too: the operator's own.
        resolve: host, port -> addresses.

    Raises:
        UnsafeAddress: by every request whose address breaks a rule.
    """

    def __init__(self, *, trusted: Collection[Network] = (), resolve: Resolve = resolve) -> None:
        super().__init__()
        self.trust_env = False
        self.max_redirects = MAX_REDIRECTS
        self.adapters.clear()
        for scheme in ("https://", "http://"):
            self.mount(scheme, _PinnedAdapter(tuple(trusted), resolve))


def fetch(
    session: SafeSession,
    url: str,
    *,
    content_types: Collection[str],
    max_bytes: int = MAX_BYTES,
    timeout_s: float = TIMEOUT_S,
) -> Fetched:
    """Get a whole body.

    Args:
        content_types: media types that are welcome; `audio/*` stands for all of a kind.
        max_bytes: counted on what arrives, whatever the header says.
        timeout_s: for all of it.

    Raises:
        UnsafeAddress: the address, or one it redirects to, is not public.
        ToolUnavailable: no answer in time, 429 or 5xx.
        ToolRefused: another status, another type, too large, too many redirects.
    """
    ends_at = time.monotonic() + timeout_s
    try:
        with session.get(url, stream=True, timeout=timeout_s) as response:
            _check_status(response)
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if not any(fnmatchcase(kind, welcome) for welcome in content_types):
                raise ToolRefused(f"sent {kind or 'no media type'}", code="wrong_type")
            body = bytearray()
            for block in response.iter_content(_BLOCK_BYTES):
                body += block
                if len(body) > max_bytes:
                    raise ToolRefused(f"sent more than {max_bytes} bytes", code="too_large")
                if time.monotonic() > ends_at:
                    raise ToolUnavailable(f"took longer than {timeout_s:g} s")
    except requests.TooManyRedirects:
        raise ToolRefused(f"redirects more than {MAX_REDIRECTS} times", code="redirects") from None
    except (requests.RequestException, HTTPError) as error:
        raise _no_answer(error) from None
    return Fetched(bytes(body), kind)


def post(
    session: SafeSession,
    url: str,
    body: bytes,
    *,
    headers: Mapping[str, str],
    timeout_s: float = TIMEOUT_S,
) -> int:
    """POST a body, give the 2xx status; the answer's body is not read.

    Raises:
        UnsafeAddress: the address is not public.
        ToolUnavailable: no answer in time, 429 or 5xx.
        ToolRefused: any other status, a redirect too; `code` is the status.
    """
    try:
        with session.post(
            url, data=body, headers=dict(headers), stream=True, timeout=timeout_s,
            allow_redirects=False,
        ) as response:  # fmt: skip
            _check_status(response)
            return response.status_code
    except (requests.RequestException, HTTPError) as error:
        raise _no_answer(error) from None


def _check_status(response: requests.Response) -> None:
    status = response.status_code
    if status == 429 or status >= 500:
        wait_s = retry_after_s(response.headers, now=datetime.now(UTC))
        raise ToolUnavailable(f"answered {status}", after_s=wait_s)
    if not 200 <= status < 300:
        raise ToolRefused(f"answered {status}", code=str(status))


def _no_answer(error: Exception) -> ToolUnavailable:
    # the text of the error may hold the address, and the address may be a secret
    return ToolUnavailable(f"no answer: {type(error).__name__}")


class _PinnedAdapter(HTTPAdapter):
    """Checks the shape of each address; its connections check and pin what the name stands for."""

    def __init__(self, trusted: tuple[Network, ...], resolve: Resolve) -> None:
        self._trusted = trusted
        self._resolve = resolve
        super().__init__(max_retries=0)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """As the base class, with pools whose connections go to checked addresses only."""
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = _pinned_pools(self._address)

    def send(
        self, request: requests.PreparedRequest, *arguments: Any, **options: Any
    ) -> requests.Response:
        """As the base class; called for each redirect, too."""
        if "@" in urlsplit(request.url or "").netloc:
            raise UnsafeAddress("the address holds a name or password; send it without")
        return super().send(request, *arguments, **options)

    def _address(self, host: str, port: int, *, is_secure: bool) -> str:
        """The one checked address to connect to.

        Raises:
            UnsafeAddress: one of the name's addresses is not public.
        """
        is_usual = is_secure and port in _PORTS
        found = self._resolve(host.strip("[]"), port)
        for address in found:
            if not is_public(address, self._trusted):
                raise UnsafeAddress("the address leads into a private network")
            if not is_usual and is_public(address):
                raise UnsafeAddress("only https on port 443 or 80 is followed")
        if not found:
            raise UnsafeAddress("the name stands for no address")
        return found[0]


def _pinned_pools(address_of: Callable[..., str]) -> dict[str, type[HTTPConnectionPool]]:
    def connect(connection: HTTPConnection, *, is_secure: bool) -> socket.socket:
        port = int(connection.port or 0)
        try:
            address = address_of(connection._dns_host, port, is_secure=is_secure)
        except OSError as error:
            raise NameResolutionError(connection.host, connection, error) from error  # type: ignore[arg-type]
        return create_connection(
            (address, port), connection.timeout, socket_options=connection.socket_options
        )

    class PlainConnection(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return connect(self, is_secure=False)

    class SecureConnection(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return connect(self, is_secure=True)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = PlainConnection

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = SecureConnection

    return {"http": PlainPool, "https": SecurePool}
