"""What lies in a NIM image, and the tools in it that the operator's pods call."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from rehearsal.nim import image, store

ROOT = Path(__file__).resolve().parents[3]
LLAMA = "nvcr.io/nim/meta/llama-3.1-8b-instruct:1.3.3"
REFERENCE = "2ca9c4d3bc80ee8dab86667b514520169323b81fb06534e0fab33afbbfcf0ecc"  # recordings cache-ready
OTHER = "nvcr.io/nim/acme/parrot-7b:2.0.1"


def tool(name: str, *arguments: str, model_store: Path, reference: str = LLAMA, **environ: str) -> tuple[int, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NIM_", "NGC_", "REHEARSAL_", "PYTHONPATH"))}
    env |= {
        "REHEARSAL_IMAGE": reference,
        "NIM_CACHE_PATH": str(model_store),
        "NIM_STANDIN_DOWNLOAD_S": "0.1",
        **environ,
    }
    env["PATH"] = f"{ROOT}/rehearsal/nim/bin:{env['PATH']}"
    done = subprocess.run([name, *arguments], env=env, cwd="/", capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout + done.stderr


def profiles(reference: str) -> list[image.Profile]:
    return image.parse_manifest(image.root_files(reference)[image.MANIFEST_PATH])


def test_the_reference_deployment_has_one_matching_profile() -> None:
    wanted = {"llm_engine": "tensorrt_llm", "precision": "fp16", "gpu": "A10G", "feat_lora": "false"}
    found = [p for p in profiles(LLAMA) if wanted.items() <= p.tags.items()]
    assert [p.id for p in found] == [REFERENCE]
    assert dict(found[0].tags) == {**wanted, "gpu_device": "2237:10de", "pp": "1", "profile": "throughput", "tp": "2"}
    assert not [p for p in profiles(LLAMA) if p.tags.get("gpu") == "A10G" and p.tags["precision"] == "fp8"]


@pytest.mark.parametrize("reference", [LLAMA, OTHER])
def test_manifests_are_whole(reference: str) -> None:
    text = image.root_files(reference)[image.MANIFEST_PATH]
    assert "<" not in re.sub(r"#.*", "", text)
    found = profiles(reference)
    assert len(found) >= 8 and len({p.id for p in found}) == len(found)
    for profile in found:
        assert re.fullmatch(r"[0-9a-f]{64}", profile.id)
        assert profile.files and all(re.fullmatch(r"nim/\S+:\S+", f) for f in profile.files)
        assert {"llm_engine", "precision", "tp"} <= profile.tags.keys()


def test_both_schemas_exist() -> None:
    first, second = (yaml.safe_load(image.root_files(r)[image.MANIFEST_PATH]) for r in (LLAMA, OTHER))
    assert {"model", "release", "tags"} <= first[REFERENCE].keys()
    assert second["schema_version"].startswith("2")


def test_a_manifest_carries_the_tag_of_its_image() -> None:
    data = yaml.safe_load(image.root_files(LLAMA.replace("1.3.3", "1.3.4"))[image.MANIFEST_PATH])
    assert {entry["release"] for entry in data.values()} == {"1.3.4"}
    assert all(entry["container_url"].endswith(":1.3.4") for entry in data.values())


def test_what_is_no_nim_is_refused() -> None:
    with pytest.raises(image.ImageError, match="no NIM image"):
        image.root_files("docker.io/library/busybox:1")


def test_the_image_command_writes_its_files(tmp_path: Path) -> None:
    assert image.main([LLAMA, str(tmp_path)]) == 0
    assert REFERENCE in (tmp_path / image.MANIFEST_PATH.lstrip("/")).read_text()


def test_the_job_of_the_operator_fills_the_store(tmp_path: Path) -> None:
    code, log = tool("download-to-cache", "--profiles", REFERENCE, model_store=tmp_path, NGC_API_KEY="dummy-key")
    assert code == 0, log
    assert "dummy-key" not in log
    profile = next(p for p in profiles(LLAMA) if p.id == REFERENCE)
    assert store.cached(tmp_path, profiles(LLAMA)) == [profile]
    assert all(path.stat().st_size for path in store.paths(tmp_path, profile))
    code, log = tool("download-to-cache", "--profiles", REFERENCE, model_store=tmp_path, NGC_API_KEY="dummy-key")
    assert code == 0 and "already" in log


def test_all_profiles_can_be_downloaded(tmp_path: Path) -> None:
    code, log = tool("download-to-cache", "--all", model_store=tmp_path, reference=OTHER, NGC_API_KEY="k")
    assert code == 0, log
    assert store.cached(tmp_path, profiles(OTHER)) == profiles(OTHER)


def test_a_download_needs_a_key(tmp_path: Path) -> None:
    code, log = tool("download-to-cache", "--profiles", REFERENCE, model_store=tmp_path)
    assert code == 1 and "Authentication Error" in log
    assert not list(tmp_path.iterdir())


def test_an_unknown_profile_is_refused(tmp_path: Path) -> None:
    code, log = tool("download-to-cache", "--profiles", "f" * 64, model_store=tmp_path, NGC_API_KEY="k")
    assert code == 1 and "profile not found" in log


def test_a_store_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, log = tool("download-to-cache", "--all", model_store=tmp_path / "file", NGC_API_KEY="k")
    assert code == 1 and "cannot be used" in log


def test_half_a_download_is_no_cache(tmp_path: Path) -> None:
    profile = profiles(LLAMA)[0]
    store.download(tmp_path, profile, 0.0, lambda _: None)
    store.paths(tmp_path, profile)[-1].unlink()
    assert not store.is_cached(tmp_path, profile)
    assert store.download(tmp_path, profile, 0.0, lambda _: None) == 1
    assert store.is_cached(tmp_path, profile)


def test_profiles_are_listed_and_laid_out(tmp_path: Path) -> None:
    code, text = tool("list-model-profiles", model_store=tmp_path)
    assert code == 0 and f"{REFERENCE} (tensorrt_llm-A10G-fp16-tp2-throughput)" in text
    arguments = ["--profile", REFERENCE, "--model-store", str(tmp_path / "out")]
    code, log = tool("create-model-store", *arguments, model_store=tmp_path / "cache", NGC_API_KEY="k")
    assert code == 0, log
    assert (tmp_path / "out" / "trtllm_engine" / "rank1.engine").is_file()
    assert (tmp_path / "out" / "config.json").is_file()
