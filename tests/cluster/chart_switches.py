"""Each switch of the chart's values: what to set, and what it changes in what is rendered."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]
ABSENT = object()


@dataclass(frozen=True)
class Switch:
    """`values` beside the defaults, and what is then at each place; a place is `Kind/name-suffix:path.to.field`."""

    values: Mapping[str, Any]
    shows: Mapping[str, Any]


_POD = "Deployment/:spec.template.spec"
_ENV = f"{_POD}.containers.0.env"
_TOLERATION = {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}
_SPREAD = {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
_AFFINITY = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}]
        }
    }
}
_TEMPLATE = {"metadata": {"labels": {"team": "merge"}}, "spec": {"serviceAccountName": "s3-reader"}}
_PORTS = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]


def _tcp(*ports: int) -> list[Document]:
    return [{"port": port, "protocol": "TCP"} for port in ports]


def switches(namespace: str) -> dict[str, Switch]:
    """By name; `namespace` is one that is there."""
    return {
        "defaults": Switch(
            {},
            {
                "Deployment/:spec.replicas": 2,
                f"{_POD}.containers.0.image": "evomerge-operator:0.1.0",
                f"{_ENV}.3.value": "",
                f"{_ENV}.4.value": "evomerge-worker:0.1.0",
                f"{_POD}.topologySpreadConstraints.0.whenUnsatisfiable": "ScheduleAnyway",
                f"{_POD}.imagePullSecrets": ABSENT,
                "PodDisruptionBudget/:spec.maxUnavailable": 1,
                "ClusterRoleBinding/:subjects.0.name": "other-evomerge",
                "ServiceMonitor/": ABSENT,
                "PodMonitor/-workers": ABSENT,
                "PrometheusRule/": ABSENT,
                "ConfigMap/-dashboard": ABSENT,
                "NetworkPolicy/": ABSENT,
            },
        ),
        "images": Switch(
            {
                "image": {
                    "operator": {"repository": "registry.example.com/operator", "tag": "1"},
                    "worker": {"repository": "registry.example.com/worker", "tag": "2@sha256:" + "0" * 64},
                    "pullPolicy": "Always",
                },
                "imagePullSecrets": [{"name": "registry"}],
            },
            {
                f"{_POD}.containers.0.image": "registry.example.com/operator:1",
                f"{_POD}.containers.0.imagePullPolicy": "Always",
                f"{_ENV}.4.value": "registry.example.com/worker:2@sha256:" + "0" * 64,
                f"{_POD}.imagePullSecrets.0.name": "registry",
                "Pod/-test:spec.containers.0.image": "registry.example.com/operator:1",
                "Pod/-test:spec.imagePullSecrets.0.name": "registry",
            },
        ),
        "one replica": Switch({"replicas": 1}, {"Deployment/:spec.replicas": 1, "PodDisruptionBudget/": ABSENT}),
        "no replica": Switch({"replicas": 0}, {"Deployment/:spec.replicas": 0, "PodDisruptionBudget/": ABSENT}),
        "namespaced": Switch(
            {"namespaces": [namespace]},
            {
                f"{_ENV}.3.value": namespace,
                "ClusterRole/": ABSENT,
                "ClusterRoleBinding/": ABSENT,
                "Role/:metadata.namespace": namespace,
                "RoleBinding/:roleRef.kind": "Role",
            },
        ),
        "CRDs by others": Switch(
            {"crds": {"install": False}},
            {"CustomResourceDefinition/": ABSENT},
        ),
        "no roles for people": Switch(
            {"rbac": {"aggregatedRoles": False}},
            {"ClusterRole/-view": ABSENT, "ClusterRole/-edit": ABSENT},
        ),
        "workload identity": Switch(
            {"serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}}},
            {"ServiceAccount/:metadata.annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}},
        ),
        "a template for workers": Switch(
            {"worker": {"podTemplate": _TEMPLATE}},
            {f"{_ENV}.5.value": '{"metadata":{"labels":{"team":"merge"}},"spec":{"serviceAccountName":"s3-reader"}}'},
        ),
        "scheduling": Switch(
            {
                "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
                "nodeSelector": {"pool": "system"},
                "tolerations": [_TOLERATION],
                "affinity": _AFFINITY,
                "topologySpreadConstraints": [_SPREAD],
                "priorityClassName": "system-cluster-critical",
            },
            {
                f"{_POD}.containers.0.resources.limits.memory": "1Gi",
                f"{_POD}.containers.0.resources.requests.cpu": "1",
                f"{_POD}.nodeSelector": {"pool": "system"},
                f"{_POD}.tolerations": [_TOLERATION],
                f"{_POD}.affinity": _AFFINITY,
                f"{_POD}.topologySpreadConstraints": [_SPREAD],
                f"{_POD}.priorityClassName": "system-cluster-critical",
                "Pod/-test:spec.nodeSelector": {"pool": "system"},
                "Pod/-test:spec.tolerations": [_TOLERATION],
            },
        ),
        "monitors": Switch(
            {
                "metrics": {
                    "labels": {"release": "prometheus"},
                    "serviceMonitor": {"enabled": True},
                    "podMonitor": {"enabled": True},
                    "prometheusRule": {"enabled": True},
                    "dashboard": {"enabled": True, "labels": {"grafana_dashboard": "yes"}},
                }
            },
            {
                "ServiceMonitor/:metadata.labels.release": "prometheus",
                "PodMonitor/-workers:metadata.labels.release": "prometheus",
                "PodMonitor/-workers:spec.namespaceSelector": {"any": True},
                "PrometheusRule/:metadata.labels.release": "prometheus",
                "ConfigMap/-dashboard:metadata.labels.grafana_dashboard": "yes",
                "ConfigMap/-dashboard:metadata.labels.release": ABSENT,
            },
        ),
        "monitors of some namespaces": Switch(
            {"namespaces": [namespace], "metrics": {"podMonitor": {"enabled": True}}},
            {"PodMonitor/-workers:spec.namespaceSelector": {"matchNames": [namespace]}},
        ),
        "network policies": Switch(
            {
                "namespaces": [namespace],
                "networkPolicy": {"enabled": True, "apiServerPorts": [8443], "storagePorts": [9000, 443]},
            },
            {
                "NetworkPolicy/:spec.egress.0.ports": [*_PORTS, *_tcp(8443)],
                "NetworkPolicy/:spec.ingress.0.ports": _tcp(8080),
                "NetworkPolicy/-workers:metadata.namespace": namespace,
                "NetworkPolicy/-workers:spec.egress.0.ports": [*_PORTS, *_tcp(9000, 443)],
                "NetworkPolicy/-workers:spec.ingress.0.ports": _tcp(9464),
            },
        ),
        "a network policy of the operator alone": Switch(
            {"networkPolicy": {"enabled": True}},
            {"NetworkPolicy/:spec.egress.0.ports": [*_PORTS, *_tcp(443, 6443)], "NetworkPolicy/-workers": ABSENT},
        ),
    }


BAD_VALUES: dict[str, tuple[Mapping[str, Any], str]] = {
    "a misspelt switch": ({"replica": 1}, "additional properties 'replica' not allowed"),
    "a misspelt switch inside": ({"metrics": {"podmonitor": {}}}, "additional properties 'podmonitor' not allowed"),
    "too many replicas": ({"replicas": 6}, "/replicas': maximum: got 6, want 5"),
    "replicas as text": ({"replicas": "2"}, "/replicas': got string, want integer"),
    "a namespace as text": ({"namespaces": "team"}, "/namespaces': got string, want array"),
    "a namespace twice": ({"namespaces": ["a", "a"]}, "/namespaces': items at 0 and 1 are equal"),
    "a pattern of namespaces": ({"namespaces": ["team-*"]}, "/namespaces/0': 'team-*' does not match pattern"),
    "an unknown pull policy": ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy': value must be one of"),
    "an image as text": ({"image": {"worker": "evomerge-worker:1"}}, "/image/worker': got string, want object"),
    "no repository": ({"image": {"worker": {"repository": ""}}}, "/image/worker/repository': minLength: got 0, want 1"),
    "a pull secret as text": ({"imagePullSecrets": ["registry"]}, "/imagePullSecrets/0': got string, want object"),
    "a switch that is none": ({"crds": {"install": "yes"}}, "/crds/install': got string, want boolean"),
    "a pod instead of its template": (
        {"worker": {"podTemplate": {"containers": []}}},
        "/worker/podTemplate': additional properties 'containers' not allowed",
    ),
    "a label that is no text": (
        {"worker": {"podTemplate": {"metadata": {"labels": {"a": 1}}}}},
        "/worker/podTemplate/metadata/labels/a': got number, want string",
    ),
    "no port": ({"networkPolicy": {"storagePorts": []}}, "/networkPolicy/storagePorts': minItems: got 0, want 1"),
    "a port too high": (
        {"networkPolicy": {"apiServerPorts": [65536]}},
        "/networkPolicy/apiServerPorts/0': maximum: got 65,536, want 65,535",
    ),
    "a node's label that is no text": ({"nodeSelector": {"gpu": True}}, "/nodeSelector/gpu': got boolean, want string"),
}
"""Values that are refused, and the words that Helm has from the schema."""
