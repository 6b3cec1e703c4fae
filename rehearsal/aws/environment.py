"""The environment variables with which a program (terraform, boto3, Airflow) talks to the stand-in instead of AWS."""

from __future__ import annotations

from typing import Any

from rehearsal.aws import ACCESS_KEY_ID, SECRET_ACCESS_KEY


def environment(endpoint_url: str, region: str = "us-west-2") -> dict[str, str]:
    """Variables that every AWS SDK reads; `endpoint_url` is the stand-in's, without a path."""
    return {
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        "AWS_DEFAULT_REGION": region,
        "AWS_REGION": region,
        # Without it each client first looks for an instance's metadata service, outside loopback.
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def session(endpoint_url: str, region: str = "us-west-2") -> Any:
    """A boto3 session with these credentials, whatever this process's own environment says."""
    import boto3

    variables = environment(endpoint_url, region)
    return boto3.Session(
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        region_name=region,
    )
