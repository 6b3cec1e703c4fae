"""Folder and S3 stores give the same answers, under races too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nim_rollouts.clients.store import FolderStore, S3Store, Store
from nim_rollouts.core.errors import StoreMisconfigured, StoreUnavailable


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param == "folder":
        yield FolderStore(tmp_path / "store")
        return
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        yield S3Store("bucket", "a/prefix/", client)


def test_put_get_list_delete(store: Store) -> None:
    assert store.get("a/b.json") is None
    assert store.get_with_etag("a/b.json") is None
    store.put("a/b.json", b"1")
    store.put("a/b.json", b"2")
    store.put("a/c/d.json", b"3")
    store.put("z.json", b"4")
    assert store.get("a/b.json") == b"2"
    assert store.list("a/") == ["a/b.json", "a/c/d.json"]
    assert store.list("") == ["a/b.json", "a/c/d.json", "z.json"]
    assert store.list("none/") == []
    store.delete("a/b.json")
    store.delete("a/b.json")
    assert store.list("a/") == ["a/c/d.json"]


def test_create_is_once(store: Store) -> None:
    assert store.create("k", b"1")
    assert not store.create("k", b"2")
    assert store.get("k") == b"1"
    store.delete("k")
    assert store.create("k", b"3")


def test_replace_compares(store: Store) -> None:
    assert not store.replace("k", b"0", '"none"')
    store.put("k", b"1")
    found = store.get_with_etag("k")
    assert found is not None
    assert store.replace("k", b"2", found[1])
    assert not store.replace("k", b"3", found[1])
    assert store.get("k") == b"2"


def test_racing_creators_and_replacers(tmp_path: Path) -> None:
    """In the folder; S3's races are run against a server (in-process moto is not made for threads)."""
    store = FolderStore(tmp_path)
    created: list[int] = []
    counted: list[int] = []

    def work(number: int) -> None:
        if store.create("one", str(number).encode()):
            created.append(number)
        for _ in range(5):
            while True:
                found = store.get_with_etag("count")
                if found is None:
                    if store.create("count", b"1"):
                        break
                elif store.replace("count", str(int(found[0]) + 1).encode(), found[1]):
                    break
            counted.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 1
    assert store.get("one") == str(created[0]).encode()
    assert store.get("count") == str(len(counted)).encode() == b"40"


@pytest.mark.parametrize("key", ["", "/a", "a/", "../a", "a/../b", "a//b", ".hidden", "a/.b.lock", "a b", "a\nb"])
def test_keys_that_are_none(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="is not a key"):
        store.put(key, b"")


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    contents = [bytes([number]) * 200_000 for number in range(2)]
    store.put("k", contents[0])
    done = threading.Event()

    def write() -> None:
        for number in range(60):
            store.put("k", contents[number % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert store.get("k") in contents
    writer.join()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreMisconfigured, match="cannot be made"):
        FolderStore(tmp_path / "file" / "store")


def test_s3_errors_are_told_apart() -> None:
    from botocore.exceptions import ClientError, EndpointConnectionError

    def client(error: Exception) -> object:
        class Client:
            def put_object(self, **_: object) -> None:
                raise error

        return Client()

    def answer(code: str, status: int) -> ClientError:
        return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")

    for error, expected in (
        (answer("NoSuchBucket", 404), StoreMisconfigured),
        (answer("AccessDenied", 403), StoreMisconfigured),
        (answer("SlowDown", 503), StoreUnavailable),
        (EndpointConnectionError(endpoint_url="http://x"), StoreUnavailable),
    ):
        with pytest.raises(expected):
            S3Store("b", "", client(error)).put("k", b"")
    assert not S3Store("b", "", client(answer("ConditionalRequestConflict", 409))).create("k", b"")
