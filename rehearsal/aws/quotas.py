"""Service Quotas of the AWS stand-in: moto knows those of VPC alone, and not how to list or to ask for more.

The vCPU quotas of EC2 are data (quotas.yaml); the fault `few-vcpus` lowers one. What is asked for by
RequestServiceQuotaIncrease is granted at once, so that a user can try the command that a refusal names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).with_name("quotas.yaml")
Fault = Callable[[], Mapping[str, Any] | None]


def extend(fault: Fault) -> None:
    """Patch moto's service. `fault`: the settings of the fault `few-vcpus` while it is active."""
    from moto.servicequotas.exceptions import NoSuchResource
    from moto.servicequotas.responses import ServiceQuotasResponse

    known = {one["code"]: one for one in yaml.safe_load(DATA.read_text())["ec2"]}
    granted: dict[str, float] = {}

    def quota(code: str, *, default: bool = False) -> dict[str, Any]:
        if code not in known:
            raise NoSuchResource
        value = float(known[code]["value"])
        ordered = fault()
        if not default:
            value = granted.get(code, value)
            if ordered is not None and ordered["code"] == code:
                value = float(ordered["value"])
        return {
            "ServiceCode": "ec2", "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)", "QuotaCode": code,
            "QuotaName": known[code]["name"], "Value": value, "Unit": "None", "Adjustable": True, "GlobalQuota": False,
        }  # fmt: skip

    others = ServiceQuotasResponse.get_service_quota

    def get(self: Any) -> str:
        asked = json.loads(self.body)
        return json.dumps({"Quota": quota(asked["QuotaCode"])}) if asked["ServiceCode"] == "ec2" else others(self)

    def default(self: Any) -> str:
        return json.dumps({"Quota": quota(json.loads(self.body)["QuotaCode"], default=True)})

    def every(self: Any) -> str:
        asked = json.loads(self.body)
        return json.dumps({"Quotas": [quota(code) for code in known] if asked["ServiceCode"] == "ec2" else []})

    def more(self: Any) -> str:
        asked = json.loads(self.body)
        now = quota(asked["QuotaCode"])
        granted[asked["QuotaCode"]] = float(asked["DesiredValue"])
        told = {"Id": f"request-{asked['QuotaCode']}", "Status": "APPROVED", "DesiredValue": asked["DesiredValue"]}
        return json.dumps({"RequestedQuota": {**{key: now[key] for key in ("ServiceCode", "QuotaCode")}, **told}})

    for name, answer in (
        ("get_service_quota", get),
        ("get_aws_default_service_quota", default),
        ("list_service_quotas", every),
        ("request_service_quota_increase", more),
    ):
        setattr(ServiceQuotasResponse, name, answer)
