"""Runs benchmarks one after the other, each in a process of its own.

    python -m bench [NAME ...]     run these, or all
    python -m bench --list         say what there is
    python -m bench.NAME --help    options of one

A benchmark is a file in this directory with a function `main`. A cold interpreter for each keeps
one's threads and caches out of the next one's figures.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Run what was asked for; 1 if one of them failed."""
    known = benches()
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--list", action="store_true", help="list them and end")
    wanted = parser.parse_args()
    unknown = set(wanted.names) - set(known)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if wanted.list:
        width = max(map(len, known))
        for name, about in known.items():
            print(f"{name:{width}}  {about}")
        return 0
    failed = [name for name in wanted.names or known if not run(name)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def benches() -> dict[str, str]:
    """Name -> first line of its documentation, without importing any."""
    found = {}
    for path in sorted(HERE.glob("[!_]*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def run(name: str) -> bool:
    """Run one to its end."""
    return subprocess.run([sys.executable, "-m", f"bench.{name}"], cwd=HERE.parent).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
