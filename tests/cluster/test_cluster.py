"""The test cluster itself: what the other tests take for granted."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from image_references import Images
from kubernetes_cluster import Cluster, KubectlError
from pods import restricted_pod, run_to_end
from prometheus_server import Prometheus
from s3 import S3Process, S3Server

_LEFT_IN = """
import importlib.util, json, os, shutil, sys
def writes():
    try:
        open("/opt/app/file", "w")
    except OSError as error:
        return error.strerror
open("/tmp/file", "w")
found = lambda names, find: [n for n in names if find(n)]
print(json.dumps({
    "user": [os.getuid(), os.getgid()],
    "writes": writes(),
    "tools": found(["uv", "pip", "pip3", "gcc", "cc", "make", "git", "curl"], shutil.which),
    "modules": found(["torch", "transformers", "kopf", "boto3", "pip", "evomerge_operator"], importlib.util.find_spec),
    "compiled": os.path.exists(importlib.util.find_spec("yaml").cached),
}))
"""
_FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=20).status)"
_ASK_API = """
import os, ssl, urllib.request, urllib.error
account = "/var/run/secrets/kubernetes.io/serviceaccount/"
trust = ssl.create_default_context(cafile=account + "ca.crt")
bearer = {"Authorization": "Bearer " + open(account + "token").read()}
def ask(path):
    host = os.environ["KUBERNETES_SERVICE_HOST"] + ":" + os.environ["KUBERNETES_SERVICE_PORT"]
    request = urllib.request.Request(f"https://{host}/api/v1/namespaces/{os.environ['PLACE']}/{path}", headers=bearer)
    try:
        return urllib.request.urlopen(request, timeout=20, context=trust).status
    except urllib.error.HTTPError as error:
        return error.code
print(ask("pods"), ask("secrets"))
"""
_COPY = """
import boto3, sys
client = boto3.client("s3", endpoint_url=sys.argv[1], region_name="us-east-1")
question = client.get_object(Bucket=sys.argv[2], Key="question")["Body"].read()
client.put_object(Bucket=sys.argv[2], Key="answer", Body=question[::-1])
"""


@pytest.mark.parametrize(
    ("image", "modules"),
    [
        ("operator", ["kopf", "evomerge_operator"]),
        ("light_worker", ["kopf", "boto3", "evomerge_operator"]),
        pytest.param(
            "worker", ["torch", "transformers", "boto3", "evomerge_operator"], marks=pytest.mark.timeout(2400)
        ),
    ],
)
def test_an_image_runs_restricted_and_holds_what_it_needs_only(
    cluster: Cluster, images: Images, namespace: str, image: str, modules: list[str]
) -> None:
    pod = restricted_pod("look", namespace, getattr(images, image), ["python", "-c", _LEFT_IN])
    assert json.loads(run_to_end(cluster, pod)) == {
        "user": [65532, 65532],
        "writes": "Read-only file system",
        "tools": [],
        "modules": modules,
        "compiled": True,
    }


@pytest.mark.timeout(2400)
def test_the_worker_imports_what_a_session_imports(cluster: Cluster, images: Images, namespace: str) -> None:
    program = "import torch, transformers, evomerge_worker.process.session; print(torch.ones(2).sum().item())"
    pod = restricted_pod("import", namespace, images.worker, ["python", "-c", program])
    assert run_to_end(cluster, pod, seconds=120) == "2.0\n"


def test_a_pod_with_root_rights_is_refused(cluster: Cluster, images: Images, namespace: str) -> None:
    pod = restricted_pod("root", namespace, images.operator, ["true"])
    pod["spec"]["securityContext"] = {}
    with pytest.raises(KubectlError, match='violates PodSecurity "restricted'):
        cluster.apply(pod)


def test_a_service_leads_to_its_pod(cluster: Cluster, images: Images, namespace: str) -> None:
    ports = [{"port": 80, "targetPort": 8000}]
    service = {
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {"selector": {"app": "web"}, "ports": ports},
    }
    server = restricted_pod("web", namespace, images.operator, ["python", "-m", "http.server", "--directory=/opt/app"])
    server["spec"]["containers"][0]["readinessProbe"] = {"httpGet": {"port": 8000}, "periodSeconds": 1}
    cluster.apply([server, {"apiVersion": "v1", "kind": "Service", **service}])
    cluster.kubectl("wait", "pod/web", f"--namespace={namespace}", "--for=condition=Ready", "--timeout=60s")
    address = cluster.get("service/web", f"--namespace={namespace}")["spec"]["clusterIP"]
    fetch = restricted_pod("fetch", namespace, images.operator, ["python", "-c", _FETCH, f"http://{address}/"])
    assert run_to_end(cluster, fetch) == "200\n"


def test_a_service_account_may_do_what_its_role_says_and_the_audit_log_has_it(
    cluster: Cluster, images: Images, namespace: str
) -> None:
    options = [f"--namespace={namespace}"]
    cluster.kubectl("create", "serviceaccount", "reader", *options)
    cluster.kubectl("create", "role", "reader", "--verb=list", "--resource=pods", *options)
    cluster.kubectl(
        "create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={namespace}:reader", *options
    )
    place = [{"name": "PLACE", "value": namespace}]
    ask = restricted_pod("ask", namespace, images.operator, ["python", "-c", _ASK_API], place, service_account="reader")
    assert run_to_end(cluster, ask) == "200 403\n"
    user = f"system:serviceaccount:{namespace}:reader"
    seen = [
        (entry["verb"], entry["objectRef"]["resource"], entry["responseStatus"]["code"])
        for entry in cluster.audit()
        if entry["user"]["username"] == user
    ]
    assert seen == [("list", "pods", 200), ("list", "secrets", 403)]


def test_a_token_and_its_kubeconfig_have_the_rights_of_the_account(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    kubeconfig = cluster.kubeconfig_of("default", namespace, tmp_path / "kubeconfig")
    stranger = Cluster(kubeconfig, cluster.address, cluster.is_ours)
    with pytest.raises(KubectlError, match=f"system:serviceaccount:{namespace}:default.* cannot list resource"):
        stranger.get("pods")


def test_a_pod_reaches_the_s3_server_with_keys_from_a_secret(
    cluster: Cluster, images: Images, namespace: str, s3: S3Server, s3_secret: str
) -> None:
    client = s3.client()
    client.create_bucket(Bucket=namespace)
    client.put_object(Bucket=namespace, Key="question", Body=b"evomerge")
    keys = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": s3_secret, "key": name}}}
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    ]
    command = ["python", "-c", _COPY, s3.endpoint, namespace]
    run_to_end(cluster, restricted_pod("copy", namespace, images.light_worker, command, keys))
    assert client.get_object(Bucket=namespace, Key="answer")["Body"].read() == b"egremove"


def test_the_s3_server_keeps_its_data_over_a_stop(s3_process: S3Process) -> None:
    client = s3_process.server.client()
    client.create_bucket(Bucket="kept")
    client.put_object(Bucket="kept", Key="object", Body=b"still there")
    s3_process.stop()
    s3_process.start()
    assert client.get_object(Bucket="kept", Key="object")["Body"].read() == b"still there"


def test_the_api_server_can_be_stopped_and_started(cluster: Cluster, images: Images, namespace: str) -> None:
    command = ["python", "-c", "import time; time.sleep(300)"]
    cluster.apply(restricted_pod("sleeper", namespace, images.operator, command))
    cluster.kubectl("wait", "pod/sleeper", f"--namespace={namespace}", "--for=condition=Ready", "--timeout=60s")
    cluster.stop_api()
    try:
        with pytest.raises(KubectlError, match="refused"):
            cluster.get("pods", f"--namespace={namespace}")
    finally:
        cluster.start_api()
    status = cluster.get("pod/sleeper", f"--namespace={namespace}")["status"]
    assert (status["phase"], status["containerStatuses"][0]["restartCount"]) == ("Running", 0)


def test_prometheus_scrapes_and_answers(prometheus: Callable[..., Prometheus], tmp_path: Path) -> None:
    rules = {"groups": [{"name": "test", "rules": [{"alert": "Here", "expr": "up == 1"}]}]}
    (tmp_path / "rules.yml").write_text(json.dumps(rules))
    server = prometheus({"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": ["rules.yml"]})
    assert server.wait_for("vector(1)")[0]["value"][1] == "1"
    assert server.targets() == []
    assert server.api("rules")["groups"][0]["rules"][0]["name"] == "Here"


def test_helm_reaches_the_cluster(helm: Callable[..., str], namespace: str) -> None:
    assert json.loads(helm("list", "--namespace", namespace, "--output=json")) == []
