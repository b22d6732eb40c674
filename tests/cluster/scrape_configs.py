"""ServiceMonitors and PodMonitors as Prometheus's own configuration, as the Prometheus operator translates them.

Debian's Prometheus is built without the discovery of Kubernetes targets, so the targets, with the labels that it would
have given them, come from here by HTTP. What a monitor selects, keeps and renames is then Prometheus's own work.
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from api_server import ApiServer

Document = Mapping[str, Any]


def scrape_config(monitor: Document, discovery: str) -> dict[str, Any]:
    """The scrape configuration of a monitor, asking for everything each second."""
    of_pods, spec = monitor["kind"] == "PodMonitor", monitor["spec"]
    [endpoint] = spec["podMetricsEndpoints" if of_pods else "endpoints"]
    namespaces = spec.get("namespaceSelector", {}).get("matchNames", [monitor["metadata"]["namespace"]])
    of, port = ("pod", "pod_container_port_name") if of_pods else ("service", "endpointslice_port_name")
    ended = {"source_labels": ["__meta_kubernetes_pod_phase"], "regex": "(Failed|Succeeded)", "action": "drop"}
    return {
        "job_name": monitor["metadata"]["name"],
        "scrape_interval": "1s",
        "honor_labels": endpoint.get("honorLabels", False),
        "http_sd_configs": [{"url": f"{discovery}/{of}s/{name}", "refresh_interval": "1s"} for name in namespaces],
        "relabel_configs": [
            *(_keep(f"{of}_label_{_sane(label)}", value) for label, value in spec["selector"]["matchLabels"].items()),
            _keep(port, endpoint["port"]),
            ended,
            {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
            {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
            *({_snake(key): value for key, value in rule.items()} for rule in endpoint.get("relabelings", [])),
        ],
    }


@contextmanager
def discovery(api: ApiServer) -> Iterator[str]:
    """The address of a server of targets: /pods/NAMESPACE and /services/NAMESPACE, as they are at each request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, kind, namespace = self.path.split("/")
            found = list({"pods": _pods, "services": _services}[kind](api, namespace))
            targets = [
                {"targets": [address], "labels": {f"__meta_kubernetes_{k}": v for k, v in labels.items()}}
                for address, labels in found
            ]
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(targets).encode())

        def log_message(self, *_: object) -> None:
            """Nothing: pytest has the output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _pods(api: ApiServer, namespace: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each port of each pod."""
    for pod in api.request("GET", f"/api/v1/namespaces/{namespace}/pods").body["items"]:
        metadata, status = pod["metadata"], pod["status"]
        labels = {"namespace": namespace, "pod_name": metadata["name"], "pod_phase": status["phase"]}
        labels |= {f"pod_label_{_sane(key)}": value for key, value in metadata.get("labels", {}).items()}
        ports = [port for container in pod["spec"]["containers"] for port in container.get("ports", [])]
        for port in ports if "podIP" in status else []:
            address = f"{status['podIP']}:{port['containerPort']}"
            yield address, labels | {"pod_container_port_name": port["name"]}


def _services(api: ApiServer, namespace: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each port of each pod behind a Service."""
    services = api.request("GET", f"/api/v1/namespaces/{namespace}/services").body["items"]
    of_service = {service["metadata"]["name"]: service["metadata"].get("labels", {}) for service in services}
    slices = api.request("GET", f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices").body["items"]
    for part in slices:
        of = of_service.get(part["metadata"]["labels"].get("kubernetes.io/service-name"), {})
        shared = {f"service_label_{_sane(key)}": value for key, value in of.items()} | {"namespace": namespace}
        for endpoint in part["endpoints"] or []:
            for port in part["ports"] or []:
                labels = {"pod_name": endpoint["targetRef"]["name"], "endpointslice_port_name": port["name"]}
                yield f"{endpoint['addresses'][0]}:{port['port']}", shared | labels


def _keep(label: str, value: str) -> dict[str, Any]:
    return {"source_labels": [f"__meta_kubernetes_{label}"], "regex": value.replace(".", r"\."), "action": "keep"}


def _sane(label: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", label)


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda capital: "_" + capital[0].lower(), name)
