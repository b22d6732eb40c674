"""The network inside the sandbox: one bridge that is the node's address and the pods' gateway at once."""

import json

from lab.places import BRIDGE, INSIDE, NODE_ADDRESS, POD_NETWORK, SERVICE_NETWORK
from lab.shell import run

CNI_CONFIG = INSIDE / "node/cni"


def start() -> None:
    """Bring the bridge up. There is no other interface: whatever pods and services send stays in the sandbox."""
    run(["ip", "link", "add", BRIDGE, "type", "bridge"])
    run(["ip", "addr", "add", f"{NODE_ADDRESS}/{POD_NETWORK.rpartition('/')[2]}", "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])
    run(["ip", "route", "add", SERVICE_NETWORK, "dev", BRIDGE])
    run(["ip", "route", "add", "default", "dev", BRIDGE])  # Kubernetes' components want one to exist
    run(["sysctl", "--quiet", "--write", "net.ipv4.ip_forward=1"])
    CNI_CONFIG.mkdir(parents=True)
    (CNI_CONFIG / "10-bridge.conflist").write_text(json.dumps(_plugins()))


def _plugins() -> dict[str, object]:
    addresses = {
        "type": "host-local",
        "dataDir": str(INSIDE / "node/addresses"),
        "ranges": [[{"subnet": POD_NETWORK, "rangeStart": "10.244.0.10"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "ipam": addresses}
    return {
        "cniVersion": "1.0.0",
        "name": BRIDGE,
        "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}],
    }
