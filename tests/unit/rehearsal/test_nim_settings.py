"""Settings of the NIM stand-in: where they come from, and how a share is spread."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rehearsal.nim.settings import ErrorRule, Ordered, Settings, SettingsError, Shares, load


def test_defaults() -> None:
    assert load({}) == Settings(start_s=3.0, download_s=2.0, ttft_s=0.12, itl_s=0.01, slots=64)


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "timing.json").write_text(json.dumps({"nim_start": 7, "nim_ttft": 0.5, "else": 1}))
    found = load({"REHEARSAL_STATE": str(tmp_path), "NIM_STANDIN_TTFT_MS": "250"})
    assert (found.start_s, found.ttft_s) == (7.0, 0.25)


@pytest.mark.parametrize("value", ["x", "-1", "nan"])
def test_nonsense_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match="NIM_STANDIN_ITL_MS"):
        load({"NIM_STANDIN_ITL_MS": value})


@pytest.mark.parametrize("variable", ["NIM_STANDIN_ERROR_PERCENT", "NIM_STANDIN_DROP_PERCENT"])
def test_a_share_is_at_most_100(variable: str) -> None:
    with pytest.raises(SettingsError):
        load({variable: "101"})
    assert load({variable: "100"})


@pytest.mark.parametrize("percent", [0, 1, 7, 30, 33, 50, 99, 100])
def test_any_100_in_a_row_hold_the_share(percent: int) -> None:
    shares = Shares(percent)
    hits = [shares.hit() for _ in range(400)]
    assert {sum(hits[at : at + 100]) for at in range(300)} == {percent}


def test_the_fault_is_read_at_most_once_a_second(tmp_path: Path) -> None:
    now = [0.0]
    rule = ErrorRule(0, tmp_path, clock=lambda: now[0])
    assert not rule.hit()
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "benchmark-errors.json").write_text('{"percent": 100}')
    assert not rule.hit()
    now[0] = 1.0
    assert rule.hit() and rule.hit()
    (tmp_path / "faults" / "benchmark-errors.json").unlink()
    assert rule.hit()
    now[0] = 2.0
    assert not rule.hit()


def _order(folder: Path, name: str, text: str) -> None:
    (folder / "faults").mkdir(exist_ok=True)
    (folder / "faults" / f"{name}.json").write_text(text)


def test_a_slow_start_is_ordered_over_every_setting(tmp_path: Path) -> None:
    _order(tmp_path, "slow-start", '{"start_s": 50}')
    assert load({"REHEARSAL_STATE": str(tmp_path), "NIM_STANDIN_START_S": "1"}).start_s == 50


def test_health_flaps_by_the_clock_from_the_order_on(tmp_path: Path) -> None:
    now = [100.0]
    ordered = Ordered(tmp_path, clock=lambda: now[0], period_s=0)
    assert not ordered.flapped()
    _order(tmp_path, "health-flaps", '{"up_s": 4, "down_s": 2}')
    seen = []
    for second in range(12):
        now[0] = 100.0 + second
        seen.append(ordered.flapped())
    assert seen == [False] * 4 + [True] * 2 + [False] * 4 + [True] * 2
    (tmp_path / "faults" / "health-flaps.json").unlink()
    assert not ordered.flapped()
