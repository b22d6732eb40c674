"""`helm test`: an operator is ready, and the API server serves both kinds."""

import json
import os
import ssl
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
KINDS = {"evomerges", "mergecandidates"}
DEADLINE_SECONDS = 45


def ready() -> None:
    """Raise unless an operator says that it is ready."""
    urllib.request.urlopen(os.environ["OPERATOR"] + "/readyz", timeout=5).close()  # noqa: S310


def served() -> None:
    """Raise unless both kinds are served."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    address = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    token = (ACCOUNT / "token").read_text()
    request = urllib.request.Request(  # noqa: S310
        f"{address}/apis/evomerge.dev/v1alpha1", headers={"Authorization": f"Bearer {token}"}
    )
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, timeout=5, context=context) as answer:  # noqa: S310
        missing = KINDS - {resource["name"] for resource in json.load(answer)["resources"]}
    if missing:
        raise OSError(f"without {', '.join(sorted(missing))}")


def until_well(check: Callable[[], None], otherwise: str) -> None:
    """Try until the check passes; end the process with a sentence at the deadline."""
    end = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            return check()
        except (OSError, ValueError) as error:
            if time.monotonic() > end:
                sys.exit(f"{otherwise}: {error}")
        time.sleep(1)


until_well(ready, "no operator is ready")
until_well(served, "the API server does not serve EvoMerge's kinds")
sys.stdout.write("an operator is ready, and the API server serves EvoMerge's kinds\n")
