"""EFS access points, made and removed through boto3 as the CSI driver's controller does it.

Blocking: callers run these methods in a thread. Failures are told as the gRPC status that the driver would answer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CLUSTER_TAG = "efs.csi.aws.com/cluster"
_GID_START, _GID_END = 50000, 7000000
"""The driver's own range for classes that name no gid."""


class DriverError(Exception):
    """A refusal by the driver, worded as external-provisioner shows it: ``rpc error: code = ... desc = ...``."""

    def __init__(self, code: str, desc: str):
        super().__init__(f"rpc error: code = {code} desc = {desc}")
        self.code = code


@dataclass(frozen=True)
class Wanted:
    """What a class and a claim ask of an access point."""

    file_system: str
    token: str
    directory: str
    permissions: str
    uid: int | None
    gid: int | None
    gid_range: tuple[int, int]


def _number(parameters: Mapping[str, str], name: str, minimum: int) -> int | None:
    if name not in parameters:
        return None
    try:
        value = int(parameters[name])
    except ValueError as error:
        raise DriverError("InvalidArgument", f"Failed to parse invalid {name}: {error}") from None
    if value < minimum:
        raise DriverError("InvalidArgument", f"{name} must be greater than {minimum - 1}")
    return value


def wanted(parameters: Mapping[str, str], volume: str, claim_name: str) -> Wanted:
    """Read a class's parameters. Raises DriverError for what the driver refuses."""
    mode = parameters.get("provisioningMode")
    if mode is None:
        raise DriverError("InvalidArgument", "Missing provisioningMode parameter")
    if mode != "efs-ap":
        raise DriverError(
            "InvalidArgument",
            f"Provisioning mode {mode} is not supported. Only Access point provisioning: 'efs-ap' is supported",
        )
    file_system = parameters.get("fileSystemId")
    if file_system is None:
        raise DriverError("InvalidArgument", "Missing fileSystemId parameter")
    if not file_system.strip():
        raise DriverError("InvalidArgument", "Parameter fileSystemId cannot be empty")
    start, end = _number(parameters, "gidRangeStart", 1), _number(parameters, "gidRangeEnd", 1)
    if (start is None) != (end is None):
        missing = "gidRangeStart" if start is None else "gidRangeEnd"
        raise DriverError("InvalidArgument", f"Missing {missing} parameter")
    if start is not None and end is not None and end <= start:
        raise DriverError("InvalidArgument", "gidRangeEnd must be greater than gidRangeStart")
    # With reuseAccessPoint the token comes from the claim's name, so that another cluster finds the same one.
    reuse = parameters.get("reuseAccessPoint") == "true"
    token = hashlib.sha256(claim_name.encode()).hexdigest() if reuse else volume
    return Wanted(
        file_system=file_system.strip(),
        token=token,
        directory=f"{parameters.get('basePath', '').rstrip('/')}/{volume}",
        permissions=parameters.get("directoryPerms", "700"),
        uid=_number(parameters, "uid", 0),
        gid=_number(parameters, "gid", 0),
        gid_range=(start or _GID_START, end or _GID_END),
    )


class AccessPoints:
    """The driver's view of EFS."""

    def __init__(self, client: Any):
        self._efs = client

    @classmethod
    def at(cls, endpoint: str) -> AccessPoints:
        """A client of the AWS stand-in at ``endpoint``; its credentials are worth nothing elsewhere."""
        import boto3
        from botocore.config import Config

        client = boto3.client(
            "efs",
            endpoint_url=endpoint,
            region_name=os.environ.get("AWS_DEFAULT_REGION", "us-west-2"),
            aws_access_key_id="rehearsal",
            aws_secret_access_key="rehearsal",
            config=Config(connect_timeout=2, read_timeout=4, retries={"max_attempts": 1}),
        )
        return cls(client)

    def create(self, want: Wanted) -> str:
        """The id of the access point of ``want.token``, made unless it is there. Raises DriverError."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._efs.describe_file_systems(FileSystemId=want.file_system)
            targets = self._efs.describe_mount_targets(FileSystemId=want.file_system)["MountTargets"]
        except (ClientError, BotoCoreError) as error:
            raise _described(error, "Failed to fetch File System info: Describe File System failed") from error
        if not targets:
            raise DriverError(
                "Internal",
                f"Cannot find mount targets for file system {want.file_system}. "
                "Please create mount targets for file system.",
            )
        if not any(target["LifeCycleState"] == "available" for target in targets):
            raise DriverError(
                "Internal",
                f"No mount target for file system {want.file_system} is in available state. Please retry in 5 minutes.",
            )
        try:
            points = self._of(want.file_system)
            # Looked up first: the token makes a second call find the first one's access point, also after a restart.
            for point in points:
                if point.get("ClientToken") == want.token:
                    return str(point["AccessPointId"])
            uid, gid = self._identity(want, points)
            answer = self._efs.create_access_point(
                ClientToken=want.token,
                FileSystemId=want.file_system,
                PosixUser={"Uid": uid, "Gid": gid},
                RootDirectory={
                    "Path": want.directory,
                    "CreationInfo": {"OwnerUid": uid, "OwnerGid": gid, "Permissions": want.permissions},
                },
                Tags=[{"Key": CLUSTER_TAG, "Value": "true"}],
            )
        except (ClientError, BotoCoreError) as error:
            where = f"Failed to create Access point in File System {want.file_system} "
            raise _described(error, where) from error
        return str(answer["AccessPointId"])

    def _identity(self, want: Wanted, points: list[dict[str, Any]]) -> tuple[int, int]:
        gid = want.gid
        if gid is None:
            used = {point.get("PosixUser", {}).get("Gid") for point in points}
            gid = next((g for g in range(*want.gid_range) if g not in used), None)
            if gid is None:
                raise DriverError("Internal", "Failed to locate a free GID for given the file system")
        return (gid if want.uid is None else want.uid), gid

    def delete(self, point: str) -> None:
        """Remove an access point; one that is not there counts as removed. Raises DriverError."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._efs.delete_access_point(AccessPointId=point)
        except ClientError as error:
            if error.response["Error"]["Code"] != "AccessPointNotFound":
                raise _described(error, f"Failed to Delete volume {point}") from error
        except BotoCoreError as error:
            raise _described(error, f"Failed to Delete volume {point}") from error

    def ours(self) -> dict[str, str]:
        """Access points that this driver made (by its tag), as id -> client token. Raises DriverError."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return {
                point["AccessPointId"]: point.get("ClientToken", "")
                for point in self._of(None)
                if any(tag["Key"] == CLUSTER_TAG for tag in point.get("Tags", []))
            }
        except (ClientError, BotoCoreError) as error:
            raise _described(error, "Failed to list Access Points") from error

    def _of(self, file_system: str | None) -> list[dict[str, Any]]:
        where = {"FileSystemId": file_system} if file_system else {}
        points: list[dict[str, Any]] = []
        while True:
            answer = self._efs.describe_access_points(**where)
            points += answer["AccessPoints"]
            if not answer.get("NextToken"):
                return points
            where["NextToken"] = answer["NextToken"]


def refusal(code: str) -> DriverError:
    """What the driver says when AWS answers CreateAccessPoint with this error code."""
    from botocore.exceptions import ClientError

    error = ClientError({"Error": {"Code": code, "Message": "refused"}}, "CreateAccessPoint")
    return _described(error, "Failed to create Access point in File System ")


def _described(error: Exception, doing: str) -> DriverError:
    """The driver's status for a failed AWS call."""
    response = getattr(error, "response", None) or {}
    code = response.get("Error", {}).get("Code", "")
    if code in ("AccessDeniedException", "AccessDenied"):
        return DriverError(
            "Unauthenticated", "Access Denied. Please ensure you have the right AWS permissions: Access denied"
        )
    if code == "FileSystemNotFound":
        return DriverError("InvalidArgument", "File System does not exist: Resource was not found")
    if code == "AccessPointAlreadyExists":
        return DriverError("AlreadyExists", "Access Point already exists")
    text = f"{code}: {response['Error'].get('Message', '')}" if code else str(error)
    return DriverError("Internal", f"{doing}: {text}")
