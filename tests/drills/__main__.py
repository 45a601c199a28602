"""`python -m tests.drills [--seconds 60] [--seed N]`: prints one JSON line; exit 0 if it passed."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from tests.drills.storm import storm


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long things are killed")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--keep", type=Path, help="leave everything in this empty directory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="notecast-drill-") as directory:
        where = options.keep or Path(directory)
        where.mkdir(parents=True, exist_ok=True)
        found = storm(
            where,
            seconds=options.seconds,
            seed=options.seed,
            tell=_tell,
        )
    sys.stdout.write(json.dumps(found) + "\n")
    return 0 if found["verdict"] == "pass" else 1


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
