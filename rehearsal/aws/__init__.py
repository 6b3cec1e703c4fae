"""The AWS stand-in: moto's server with what its EKS lacks, and the token webhook that an EKS control plane has.

moto answers VPC, IAM, EFS, S3, SQS and the rest by itself (`server.py` starts it). In front of it `eks.py` routes the
EKS calls that moto does not know (access entries, add-ons, pod identity, updates) to the modules `eks_*.py`, and
completes those that it answers only in part. `webhook.py` and `token.py` authenticate `k8s-aws-v1.` tokens for the
API server.

Everything is held in memory: the stand-in's account is empty whenever the process starts.
"""

from __future__ import annotations

#: The account that moto plays for keys it did not issue itself.
ACCOUNT_ID = "123456789012"

#: Credentials to use with the stand-in. They open nothing anywhere else. Any other pair works too, but only for these
#: (and for keys that moto's IAM and STS issued) is the secret known, so that a signature can be checked.
ACCESS_KEY_ID = "AKIAREHEARSALNOTREAL"
SECRET_ACCESS_KEY = "rehearsal-not-a-secret"  # noqa: S105

#: The IAM principal behind these credentials, as access entries name it.
ADMIN_PRINCIPAL_ARN = f"arn:aws:iam::{ACCOUNT_ID}:user/moto"
