from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys

import httpx2
import pytest

from tests.tools.app.app_data import DEMO, defect, png

COMMAND = [sys.executable, "-m", "tools.app", "--cfg", str(DEMO), "--opts", "TEST.method", "prior"]


def test_the_command_serves_and_leaves_nothing_behind(tmp_path):
    quiet = os.environ | {"TMPDIR": str(tmp_path)}
    command = [*COMMAND, "RNG_SEED", "3", "--port", "0"]
    with subprocess.Popen(command, env=quiet, stdout=subprocess.PIPE, text=True) as server:
        line = server.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line).group()
        added = httpx2.post(f"{address}/api/images", files={"images": ("a.png", png(defect(0)[0]))})
        assert added.is_success and "teach" in httpx2.get(address).text
        assert len(list(tmp_path.rglob("upload/a.png"))) == 1
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options, fault", [
    (["--port", "{taken}"], "port {taken}"),
    (["--cfg", "missing.yaml"], "missing.yaml"),
    (["--opts", "TEST.protocol", "published"], "TEST.protocol"),
])  # fmt: skip
def test_what_the_user_can_mend_ends_with_a_message(options, fault):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        options = [option.format(taken=taken) for option in options]
        done = subprocess.run([*COMMAND, "--port", "0", *options], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and fault.format(taken=taken) in done.stderr
    assert "Traceback" not in done.stderr
