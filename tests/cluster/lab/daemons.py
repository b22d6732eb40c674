"""The commands of the cluster's daemons. Every configuration file is JSON, which YAML readers take."""

import json
import shutil
from collections.abc import Mapping

from lab.credentials import KEYS
from lab.network import CNI_CONFIG
from lab.places import (
    AUDIT_LOG,
    BIN,
    BRIDGE,
    CONTAINERD,
    IMAGE_STORE,
    NODE,
    NODE_ADDRESS,
    SERVICE_NETWORK,
    STATE,
)

PAUSE_IMAGE = "localhost/pause:1"
DAEMONS = ("etcd", "containerd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
_ETCD = "http://127.0.0.1:2379"
_ETCD_PEER = "http://127.0.0.1:2380"


def command(daemon: str, cgroup: str) -> list[str]:
    """The command line of one of DAEMONS; writes its configuration file where it has one."""
    arguments = {
        "etcd": _etcd,
        "containerd": _containerd,
        "kube-apiserver": _apiserver,
        "kube-controller-manager": _controller_manager,
        "kube-scheduler": _scheduler,
        "kubelet": lambda: _kubelet(cgroup),
        "kube-proxy": _proxy,
    }[daemon]()
    return [str(BIN / daemon), *arguments]


def _etcd() -> list[str]:
    return [
        "--name=one",
        f"--data-dir={STATE / 'etcd'}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={_ETCD}",
        f"--advertise-client-urls={_ETCD}",
        f"--listen-peer-urls={_ETCD_PEER}",
        f"--initial-advertise-peer-urls={_ETCD_PEER}",
        f"--initial-cluster=one={_ETCD_PEER}",
        "--log-level=warn",
    ]


def _apiserver() -> list[str]:
    return [
        f"--etcd-servers={_ETCD}",
        "--bind-address=0.0.0.0",
        "--secure-port=6443",
        f"--advertise-address={NODE_ADDRESS}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--anonymous-auth=false",
        "--allow-privileged=true",
        f"--token-auth-file={KEYS / 'tokens.csv'}",
        f"--client-ca-file={KEYS / 'ca.crt'}",
        f"--tls-cert-file={KEYS / 'apiserver.crt'}",
        f"--tls-private-key-file={KEYS / 'apiserver.key'}",
        f"--kubelet-client-certificate={KEYS / 'kubelet-client.crt'}",
        f"--kubelet-client-key={KEYS / 'kubelet-client.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-signing-key-file={KEYS / 'accounts.key'}",
        f"--service-account-key-file={KEYS / 'accounts.pub'}",
        f"--audit-policy-file={_write('audit-policy', _AUDIT_POLICY)}",
        f"--audit-log-path={AUDIT_LOG}",
        "--audit-log-mode=blocking",  # an entry is on file before its request is answered
        "--max-requests-inflight=2000",
        "--max-mutating-requests-inflight=1000",
        "--profiling=false",
    ]


_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [
        {"level": "None", "resources": [{"group": "coordination.k8s.io"}], "userGroups": ["system:nodes"]},
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"], "verbs": ["get", "list", "watch"]},
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        {"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
    ],
}
"""All that service accounts do (but what Kubernetes' own controllers read), and all writes by anybody."""


def _controller_manager() -> list[str]:
    return [
        f"--kubeconfig={STATE / 'controllers.kubeconfig'}",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        f"--root-ca-file={KEYS / 'ca.crt'}",
        f"--service-account-private-key-file={KEYS / 'accounts.key'}",
        "--bind-address=127.0.0.1",
        "--allocate-node-cidrs=false",
        "--kube-api-qps=1000",  # with the default, a node takes two or three Jobs a second
        "--kube-api-burst=2000",
        "--concurrent-job-syncs=50",
        "--concurrent-gc-syncs=20",
    ]


def _scheduler() -> list[str]:
    config = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"kubeconfig": str(STATE / "scheduler.kubeconfig"), "qps": 1000, "burst": 2000},
    }
    return [f"--config={_write('scheduler', config)}", "--bind-address=127.0.0.1"]


def _kubelet(cgroup: str) -> list[str]:
    (STATE / "resolv.conf").write_text(f"nameserver {NODE_ADDRESS}\n")
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(KEYS / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "failCgroupV1": False,
        "enforceNodeAllocatable": [],
        "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
        "failSwapOn": False,
        "resolvConf": str(STATE / "resolv.conf"),
        "clusterDNS": ["10.96.0.10"],  # nobody answers there: pods know addresses and service variables
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "200Mi", "nodefs.available": "100Mi", "imagefs.available": "100Mi"},
        "evictionPressureTransitionPeriod": "10s",
        "podLogsDir": str(STATE / "pod-logs"),
        "volumePluginDir": str(STATE / "volume-plugins"),
        "serializeImagePulls": False,
        "makeIPTablesUtilChains": False,
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
    }
    return [
        f"--config={_write('kubelet', config)}",
        f"--kubeconfig={STATE / 'node.kubeconfig'}",
        f"--root-dir={STATE / 'kubelet'}",
        f"--cert-dir={STATE / 'kubelet/pki'}",
        f"--hostname-override={NODE}",
        f"--node-ip={NODE_ADDRESS}",
    ]


def _proxy() -> list[str]:
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(STATE / "proxy.kubeconfig")},
        "mode": "nftables",
        "hostnameOverride": NODE,
        "detectLocalMode": "BridgeInterface",
        "detectLocal": {"bridgeInterface": BRIDGE},
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "nodePortAddresses": ["127.0.0.0/8"],
    }
    return [f"--config={_write('proxy', config)}"]


def _containerd() -> list[str]:
    path = STATE / "containerd.toml"
    runc = shutil.which("runc")
    path.write_text(f"""\
version = 3
root = "{IMAGE_STORE}"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{CONTAINERD}"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{PAUSE_IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = "{runc}"
  SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["{BIN}"]
  conf_dir = "{CNI_CONFIG}"
""")
    return ["-c", str(path)]


def _write(name: str, config: Mapping[str, object]) -> str:
    path = STATE / f"{name}.json"
    path.write_text(json.dumps(config, indent=1))
    return str(path)
