"""The senders printed in docs/connect-webhook.md make signatures that fit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from connectors.signing import verify_webhook, webhook_key

DOC = Path(__file__).parents[2] / "docs" / "connect-webhook.md"
SECRET = "whsec_bm90ZWNhc3QtZGVtby1zZWNyZXQtMDAwMQ=="


@pytest.mark.parametrize("language", ["python", "sh"])
def test_sender_of_the_docs_is_accepted(tool, language: str):
    if language == "sh" and not (shutil.which("openssl") and shutil.which("curl")):
        pytest.skip("this sender needs openssl and curl")
    blocks = re.findall(rf"```{language}\n(.*?)```", DOC.read_text("utf-8"), re.S)
    (code,) = (block for block in blocks if "webhook-signature" in block)
    code = code.replace("http://localhost:8080", tool.url.removesuffix("/base/hook"))
    tool.answers(202, {"ok": True})

    command = [sys.executable, "-c", code] if language == "python" else ["sh", "-eu", "-c", code]
    environment = {**os.environ, "NC_BOARD_SECRET": SECRET}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    assert result.stdout.strip() == '{"ok": true}'
    headers, body = tool.requests[0]
    assert verify_webhook([webhook_key(SECRET)], headers, body, now=datetime.now(UTC))
