"""Fake tables as endpoints of `connectors.toml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How `connectors.toml` names a fake tool's table.

    Attributes:
        name: of its table in the file, and its hook's address.
        toml: the table; secrets stand there as `file:NAME`.
        secrets: name of a file -> what it holds.
    """

    name: str
    toml: str
    secrets: Mapping[str, str] = field(repr=False)


def write_endpoints(endpoints: Sequence[Endpoint], folder: Path) -> Path:
    """Write `connectors.toml` and the files of its secrets, which only we may read; gives its path.

    Raises:
        FileExistsError: the folder has one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "connectors.toml"
    with path.open("x", encoding="utf-8") as file:
        file.write("\n".join(endpoint.toml for endpoint in endpoints))
    for endpoint in endpoints:
        for name, secret in endpoint.secrets.items():
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(secret, "utf-8")
    return path
