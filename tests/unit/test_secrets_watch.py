"""The search for a leaked secret must find one: a search that finds nothing proves nothing by itself."""

from __future__ import annotations

import base64
import gzip
import io
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.rehearsal.secrets_watch import CommandLines, forms, in_bytes, in_files

SECRET = "nvapi-canary-aB3_x-9Zq/+w"


def _zipped(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tfplan", content)
    return out.getvalue()


@pytest.mark.parametrize("before", ["", "x", "$oauthtoken:", "ab"])
@pytest.mark.parametrize("after", ["", "y", '"}'])
def test_base64_is_found_at_any_place(before: str, after: str) -> None:
    text = base64.b64encode(f"{before}{SECRET}{after}".encode())
    assert in_bytes(b"Authorization: Basic " + text, forms(SECRET))


def test_plain_hex_and_packed_are_found() -> None:
    plain = f"key={SECRET};".encode()
    for content in (plain, b"\\x" + plain.hex().encode(), _zipped(plain), gzip.compress(plain)):
        assert in_bytes(content, forms(SECRET))


def test_another_key_is_not_found() -> None:
    other = base64.b64encode(b"$oauthtoken:nvapi-other-aB3_x-9Zq/+w")
    assert not in_bytes(other + b" nvapi-canary-", forms(SECRET))


def test_files_are_searched_and_skipped(tmp_path: Path) -> None:
    for name in ("logs/a/task.log", "etcd/member"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SECRET)
    assert in_files(tmp_path, forms(SECRET), skip=["etcd"]) == ["logs/a/task.log"]


def test_a_command_line_is_seen() -> None:
    watcher = CommandLines(forms(SECRET))
    watcher.start()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)", SECRET])
    try:
        deadline = time.monotonic() + 10
        while not watcher.found and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        child.kill()
        child.wait()
        watcher.stop()
    assert any(SECRET.encode() in line for line in watcher.found)
