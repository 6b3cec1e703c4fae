"""Objects under keys, in a folder or in S3, with the two writes that claims need: create-if-absent and
replace-if-unchanged. Both stores give the same answers; only the speed differs.

Keys are relative, `/`-separated, without empty or dotted parts.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from nim_rollouts.core.environment import FolderStore as FolderSpec
from nim_rollouts.core.errors import StoreMisconfigured, StoreUnavailable
from nim_rollouts.core.spec import Environment

_PART = re.compile(r"[A-Za-z0-9_+=:@,~-][A-Za-z0-9._+=:@,~-]*")


class Store(Protocol):
    """What every store can do. Errors: StoreUnavailable (retry), StoreMisconfigured (a person must act)."""

    def put(self, key: str, data: bytes) -> None:
        """Write, whatever was there."""

    def get(self, key: str) -> bytes | None:
        """The content, or None."""

    def get_with_etag(self, key: str) -> tuple[bytes, str] | None:
        """Content and the tag that `replace` compares, or None."""

    def list(self, prefix: str) -> list[str]:
        """Keys that begin with the prefix, sorted."""

    def create(self, key: str, data: bytes) -> bool:
        """Write if nothing is there; False when something is."""

    def replace(self, key: str, data: bytes, etag: str) -> bool:
        """Write if the object is still the one of that tag; False when it is another or gone."""

    def delete(self, key: str) -> None:
        """Remove; fine when nothing is there."""


def check_key(key: str) -> str:
    """The key itself.

    :raises ValueError: it could leave the store or differs between stores
    """
    if not key or not all(_PART.fullmatch(part) for part in key.split("/")):
        raise ValueError(f"{key!r} is not a key")
    return key


class FolderStore:
    """Files below a folder on a disk that all workers share.

    A write goes to a temporary file, is synced and renamed, so a reader sees the old or the new content, never a part.
    Writers of one key exclude each other by a lock on a file beside it; the lock falls with its process.
    """

    def __init__(self, path: Path | str) -> None:
        self.root = Path(path)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreMisconfigured(f"the store's folder {self.root} cannot be made: {error.strerror}") from error

    def put(self, key: str, data: bytes) -> None:
        """See Store."""
        with self._locked(key) as path:
            self._write(path, data)

    def get(self, key: str) -> bytes | None:
        """See Store."""
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _folder_error(error, key) from error

    def get_with_etag(self, key: str) -> tuple[bytes, str] | None:
        """See Store."""
        data = self.get(key)
        return None if data is None else (data, _etag(data))

    def list(self, prefix: str) -> list[str]:
        """See Store."""
        keys = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        return sorted(key for key in keys if key.startswith(prefix) and not _is_internal(key))

    def create(self, key: str, data: bytes) -> bool:
        """See Store."""
        with self._locked(key) as path:
            if path.exists():
                return False
            self._write(path, data)
            return True

    def replace(self, key: str, data: bytes, etag: str) -> bool:
        """See Store."""
        with self._locked(key) as path:
            current = self.get(key)
            if current is None or _etag(current) != etag:
                return False
            self._write(path, data)
            return True

    def delete(self, key: str) -> None:
        """See Store."""
        with self._locked(key) as path:
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    @contextmanager
    def _locked(self, key: str) -> Iterator[Path]:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The lock's file stays: removing it would let a third writer lock a new one beside a waiting second.
            handle = os.open(path.parent / f".{path.name}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _folder_error(error, key) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield path
        except OSError as error:
            raise _folder_error(error, key) from error
        finally:
            os.close(handle)

    def _write(self, path: Path, data: bytes) -> None:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class S3Store:
    """Objects below a prefix of a bucket. `client`: a boto3 S3 client."""

    def __init__(self, bucket: str, prefix: str, client: Any) -> None:
        self.bucket = bucket
        self.prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.client = client

    def put(self, key: str, data: bytes) -> None:
        """See Store."""
        with self._errors(key):
            self.client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data)

    def get(self, key: str) -> bytes | None:
        """See Store."""
        found = self.get_with_etag(key)
        return None if found is None else found[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str] | None:
        """See Store."""
        try:
            with self._errors(key):
                answer = self.client.get_object(Bucket=self.bucket, Key=self._key(key))
                return answer["Body"].read(), str(answer["ETag"])
        except _Absent:
            return None

    def list(self, prefix: str) -> list[str]:
        """See Store."""
        keys: list[str] = []
        with self._errors(prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            for page in pages:
                keys += [item["Key"].removeprefix(self.prefix) for item in page.get("Contents", ())]
        return sorted(keys)

    def create(self, key: str, data: bytes) -> bool:
        """See Store."""
        return self._conditional(key, data, IfNoneMatch="*")

    def replace(self, key: str, data: bytes, etag: str) -> bool:
        """See Store."""
        return self._conditional(key, data, IfMatch=etag)

    def delete(self, key: str) -> None:
        """See Store."""
        with self._errors(key):
            self.client.delete_object(Bucket=self.bucket, Key=self._key(key))

    def _key(self, key: str) -> str:
        return self.prefix + check_key(key)

    def _conditional(self, key: str, data: bytes, **condition: str) -> bool:
        try:
            with self._errors(key):
                self.client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, **condition)
        except (_Refused, _Absent):
            return False
        return True

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        where = f"s3://{self.bucket}/{self.prefix}{key}"
        try:
            yield
        except NoCredentialsError as error:
            raise StoreMisconfigured(f"no AWS credentials for {where}", hint="Set the AWS connection") from error
        except BotoCoreError as error:
            raise StoreUnavailable(f"{where}: {error}") from error
        except ClientError as error:
            raise _s3_error(error, where, self.bucket) from error


class _Absent(Exception):
    """404 of the key."""


class _Refused(Exception):
    """The condition did not hold."""


def _s3_error(error: Any, where: str, bucket: str) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    # 409: a concurrent conditional write of the same key was decided first, so the condition no longer holds.
    if code in ("PreconditionFailed", "ConditionalRequestConflict") or status == 412:
        return _Refused()
    if code == "NoSuchBucket":
        return StoreMisconfigured(f"the bucket {bucket} does not exist")
    if code in ("NoSuchKey", "404"):
        return _Absent()
    if status in (401, 403):
        return StoreMisconfigured(f"{where}: access denied ({code})", hint="Grant the worker's role this bucket")
    return StoreUnavailable(f"{where}: {code or status}")


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_internal(key: str) -> bool:
    return key.rsplit("/", 1)[-1].startswith(".")


def _folder_error(error: OSError, key: str) -> Exception:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return StoreMisconfigured(f"{key}: {error.strerror}", hint="Correct the folder's owner or the store's path")
    return StoreUnavailable(f"{key}: {error.strerror}")


def open_store(environment: Environment) -> Store:
    """The environment's store; S3 through its AWS connection."""
    spec = environment.store
    if isinstance(spec, FolderSpec):
        return FolderStore(spec.path)
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    hook = S3Hook(aws_conn_id=environment.aws_conn_id, region_name=environment.region)
    return S3Store(spec.bucket, spec.prefix, hook.get_conn())
