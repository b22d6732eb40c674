"""The cluster's keys, certificates, tokens and kubeconfigs: made anew whenever it goes up."""

import base64
import json
import secrets
from pathlib import Path

from lab.places import API, NODE, NODE_ADDRESS, SERVICE_ADDRESS, STATE
from lab.shell import run

KEYS = STATE / "keys"
_USERS = {
    "admin": ("admin", "system:masters"),
    "controllers": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
    "node": (f"system:node:{NODE}", "system:nodes"),
}
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def make() -> None:
    """Fill KEYS, and write one kubeconfig for each of the users."""
    KEYS.mkdir(parents=True, mode=0o700)
    run(["openssl", "req", "-x509", *_NEW_KEY, "-days", "30", "-subj", "/CN=test-ca", *_files("ca", "crt")])
    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    addresses = ["127.0.0.1", NODE_ADDRESS, SERVICE_ADDRESS]
    _certificate("apiserver", "/CN=kube-apiserver", [f"DNS:{n}" for n in names] + [f"IP:{a}" for a in addresses])
    _certificate("kubelet-client", "/O=system:masters/CN=kube-apiserver", [])
    run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", KEYS / "accounts.key"])
    run(["openssl", "ec", "-in", KEYS / "accounts.key", "-pubout", "-out", KEYS / "accounts.pub"])
    lines = []
    for name, (user, group) in _USERS.items():
        token = secrets.token_hex(16)
        lines.append(f"{token},{user},{name}" + (f',"{group}"' if group else ""))
        write_kubeconfig(STATE / f"{name}.kubeconfig", token)
    (KEYS / "tokens.csv").write_text("\n".join(lines) + "\n")


def write_kubeconfig(path: Path, token: str, namespace: str = "default") -> None:
    """A kubeconfig for the bearer of the token, complete in itself."""
    authority = base64.b64encode((KEYS / "ca.crt").read_bytes()).decode()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": API, "certificate-authority-data": authority}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        "current-context": "test",
    }
    path.write_text(json.dumps(config))
    path.chmod(0o600)


def _certificate(name: str, subject: str, alternatives: list[str]) -> None:
    run(["openssl", "req", *_NEW_KEY, "-subj", subject, *_files(name, "csr")])
    extensions = KEYS / f"{name}.ext"
    alternative_names = f"subjectAltName={','.join(alternatives)}\n" if alternatives else ""
    extensions.write_text(f"extendedKeyUsage=serverAuth,clientAuth\n{alternative_names}")
    authority: list[str | Path] = ["-CA", KEYS / "ca.crt", "-CAkey", KEYS / "ca.key", "-CAcreateserial"]
    request: list[str | Path] = ["-in", KEYS / f"{name}.csr", "-out", KEYS / f"{name}.crt", "-extfile", extensions]
    run(["openssl", "x509", "-req", "-days", "30", *authority, *request])


def _files(name: str, kind: str) -> list[str]:
    return ["-keyout", str(KEYS / f"{name}.key"), "-out", str(KEYS / f"{name}.{kind}")]
