"""Install what the IndexTTS-2 tests need, unless that would pull gigabytes of CUDA.

Run by the Makefile before the suite. Without torch those tests are skipped and say so.
"""

import json
import subprocess
import sys

PIP = [sys.executable, "-m", "pip", "install", "-q", "-c", "constraints.txt", "-e", ".[indextts2]"]


def main() -> None:
    plan = subprocess.run(
        [*PIP, "--dry-run", "--report", "-"], capture_output=True, text=True, check=False
    )
    if plan.returncode:
        print(f"torch is not to be had here, its tests are skipped: {plan.stderr.strip()[-300:]}")
        return
    names = [item["metadata"]["name"] for item in json.loads(plan.stdout)["install"]]
    if any(name.startswith("nvidia-") for name in names):
        print(
            "torch for this machine brings gigabytes of CUDA, so its tests are skipped; to run "
            "them too, install a CPU build of torch into .venv first, or: make test TORCH=yes"
        )
        return
    subprocess.run(PIP, check=True)


if __name__ == "__main__":
    main()
