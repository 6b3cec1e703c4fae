"""Containers' processes: their root, their mounts, their end. Needs namespaces of this machine, but no network."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from rehearsal.runner.containers import dropped
from rehearsal.runner.process import Process, SandboxError, StartError, log_tail, run_inside, unshare_argv

try:
    unshare_argv()
except SandboxError as error:
    pytestmark = pytest.mark.skip(str(error))

ENV = {"PATH": os.environ["PATH"], "WHO": "pod"}


def spec(folder: Path, script: str, *binds: tuple[Path, str, bool], argv: list[str] | None = None) -> dict[str, Any]:
    (folder / "root").mkdir(exist_ok=True)
    mounts = [{"source": str(source), "target": target, "read_only": ro} for source, target, ro in binds]
    command = argv or ["sh", "-c", script]
    return {"root": str(folder / "root"), "hostname": "pod-a", "keep": [], "binds": mounts, "workdir": "/",
            "argv": command}  # fmt: skip


async def run(folder: Path, script: str, *binds: tuple[Path, str, bool]) -> tuple[int, str]:
    process = await Process.start(spec(folder, script, *binds), ENV, folder / "log", sys.executable)
    code = await process.exit_code
    return code, log_tail(folder / "log")


async def test_exit_code_and_output(tmp_path: Path) -> None:
    assert await run(tmp_path, "echo $WHO at $(hostname); echo bad >&2; exit 3") == (3, "pod at pod-a\nbad") or (
        # The two streams have no order between them.
        log_tail(tmp_path / "log") == "bad\npod at pod-a"
    )


async def test_mount_points_are_made_without_a_trace_on_the_host(tmp_path: Path) -> None:
    volume, hosts = tmp_path / "volume", tmp_path / "hosts"
    volume.mkdir()
    (volume / "file").write_text("in the volume\n")
    hosts.write_text("127.1.2.3 somewhere\n")
    targets = ("/model-store-x", "/opt/no/such/place", "/var/run/secrets/x", "/dev/shm")
    binds = [(volume, target, False) for target in targets]
    script = "cat /etc/hosts; for each in " + " ".join(targets) + "; do cat $each/file; done; ls /opt | grep -v no"
    code, said = await run(tmp_path, script, *binds, (hosts, "/etc/hosts", False))
    lines = said.splitlines()
    assert lines[0] == "127.1.2.3 somewhere" and lines[1:5] == ["in the volume"] * 4
    assert sorted(lines[5:]) == sorted(os.listdir("/opt"))
    assert not any(os.path.exists(path) for path in ("/model-store-x", "/opt/no", "/run/secrets/x"))


async def test_read_only_mounts_refuse_writes(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    code, said = await run(tmp_path, "echo x > /ro/file", (volume, "/ro", True))
    assert code != 0 and "Read-only" in said and not list(volume.iterdir())
    assert (await run(tmp_path, "echo x > /rw/file", (volume, "/rw", False)))[0] == 0
    assert (volume / "file").read_text() == "x\n"


async def test_a_container_without_capabilities_meets_the_permissions_of_files(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o555)
    made = spec(tmp_path, "echo x > /in/file", (volume, "/in", False))
    process = await Process.start(made | {"drop": ["DAC_OVERRIDE"]}, ENV, tmp_path / "log", sys.executable)
    assert await process.exit_code != 0
    assert "Permission denied" in log_tail(tmp_path / "log") and not list(volume.iterdir())


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({}, []),
        ({"drop": ["NET_RAW", "CHOWN"]}, ["CHOWN"]),
        ({"drop": ["ALL"]}, ["CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER"]),
        ({"drop": ["ALL"], "add": ["CHOWN"]}, ["DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER"]),
    ],
)
def test_what_a_container_drops(given: dict[str, list[str]], taken: list[str]) -> None:
    assert dropped({"securityContext": {"capabilities": given}}) == taken


async def test_a_missing_program_is_told_as_a_runtime_does(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r'exec: "no-such-program": executable file not found in \$PATH'):
        await Process.start(spec(tmp_path, "", argv=["no-such-program"]), ENV, tmp_path / "log", sys.executable)


async def test_sigterm_reaches_the_command_and_sigkill_every_descendant(tmp_path: Path) -> None:
    script = "trap 'echo told; exit 7' TERM; setsid sleep 987654 & echo up; wait"
    process = await Process.start(spec(tmp_path, script), ENV, tmp_path / "log", sys.executable)
    await _until(lambda: "up" in log_tail(tmp_path / "log"))
    process.terminate()
    assert await process.exit_code == 7 and "told" in log_tail(tmp_path / "log")
    assert not _running("sleep", "987654")
    stubborn = "trap '' TERM; setsid sleep 987654 & while true; do sleep 0.1; done"
    process = await Process.start(spec(tmp_path, stubborn), ENV, tmp_path / "log", sys.executable)
    await _until(lambda: _running("sleep", "987654"))
    process.terminate()
    await asyncio.sleep(0.3)
    assert not process.exit_code.done()
    process.kill()
    assert await process.exit_code == 137
    assert not _running("sleep", "987654")


async def test_a_command_can_enter_the_container(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    process = await Process.start(
        spec(tmp_path, "sleep 100", (volume, "/inside", False)), ENV, tmp_path / "log", sys.executable
    )
    assert await run_inside(process.pid, ["sh", "-c", "echo $WHO; ls -d /inside; exit 4"], 5) == (4, "pod\n/inside\n")
    with pytest.raises(TimeoutError):
        await run_inside(process.pid, ["sleep", "100"], 0.3)
    process.kill()
    await process.exit_code


async def test_long_lines_are_split_as_containerd_splits_them(tmp_path: Path) -> None:
    await run(tmp_path, "head -c 40000 /dev/zero | tr '\\0' x; echo; echo end")
    entries = [line.split(b" ", 3) for line in (tmp_path / "log").read_bytes().splitlines()]
    assert [(tag, len(text)) for _, _, tag, text in entries] == [
        (b"P", 16384), (b"P", 16384), (b"F", 40000 - 2 * 16384), (b"F", 3)]  # fmt: skip


async def test_processes_end_with_the_runner(tmp_path: Path) -> None:
    """A runner that is killed leaves nothing: the container's init hears of it from the kernel."""
    code = (
        "import asyncio, pathlib, sys\n"
        "from rehearsal.runner.process import Process\n"
        "async def main():\n"
        f"    folder = pathlib.Path({str(tmp_path)!r})\n"
        f"    spec = {spec(tmp_path, 'setsid sleep 876543 & sleep 876543')!r}\n"
        f"    await Process.start(spec, {ENV!r}, folder / 'log', sys.executable)\n"
        "    await asyncio.sleep(100)\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).resolve().parents[3]
    runner = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=root)
    await _until(lambda: len(_running("sleep", "876543")) == 2)
    runner.kill()
    await runner.wait()
    await _until(lambda: not _running("sleep", "876543"))


def _running(*argv: str) -> list[int]:
    wanted = b"\0".join(part.encode() for part in argv) + b"\0"
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and Path(f"/proc/{name}/cmdline").read_bytes() == wanted:
                found.append(int(name))
        except OSError:
            continue
    return found


async def _until(check: Any, within: float = 10) -> None:
    async with asyncio.timeout(within):
        while not check():
            await asyncio.sleep(0.05)
