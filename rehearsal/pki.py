"""Keys, certificates, tokens and kubeconfigs of one rehearsal. Made anew at every `up`; worth nothing elsewhere."""

from __future__ import annotations

import base64
import ipaddress
import json
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from rehearsal.config import Rehearsal, write_atomic

_DAYS = 30


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    kind = serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()).decode()


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    sans: list[x509.GeneralName] | None,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        # OpenSSL's strict mode, Python's default since 3.13, wants the authority's key named.
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if sans is None:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
    else:
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def make(r: Rehearsal) -> None:
    """Write pki/ and the admin's kubeconfig into the state folder."""
    folder = r.path("pki")
    folder.chmod(0o700)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("nim-rollouts-ca", ca_key, "nim-rollouts-ca", ca_key, None)
    server_key = ec.generate_private_key(ec.SECP256R1())
    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    sans: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    sans.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    first_service = next(ipaddress.IPv4Network(r.service_cidr).hosts())
    sans.append(x509.IPAddress(first_service))
    server = _certificate("kube-apiserver", server_key, "nim-rollouts-ca", ca_key, sans)
    # Service-account tokens are signed with RSA: it is what every client library can verify.
    account_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    account_public = account_key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    files = {
        "ca.crt": ca.public_bytes(serialization.Encoding.PEM).decode(),
        "server.crt": server.public_bytes(serialization.Encoding.PEM).decode(),
        "server.key": _pem(server_key),
        "sa.key": _pem(account_key),
        "sa.pub": account_public.decode(),
        "tokens.csv": f'{r.admin_token},rehearsal-admin,rehearsal-admin,"system:masters"\n',
    }
    for name, text in files.items():
        write_atomic(folder / name, text, mode=0o600)
    write_atomic(r.kubeconfig, kubeconfig(r.url("apiserver"), files["ca.crt"], r.admin_token), mode=0o600)


def kubeconfig(server: str, ca_pem: str, token: str) -> str:
    """A kubeconfig as JSON, which is YAML too."""
    ca_data = base64.b64encode(ca_pem.encode()).decode()
    name = "rehearsal"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": ca_data}}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    return json.dumps(config, indent=1)
