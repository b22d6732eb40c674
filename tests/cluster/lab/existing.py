"""Images for a cluster that somebody else brought up: built by docker, handed over by kind's or minikube's own tool."""

import json
import shutil
from pathlib import Path

from lab.images import reference
from lab.places import CACHE, REPOSITORY, LabError
from lab.shell import run

RECORD = CACHE / "existing.json"
"""The references handed over last, by name."""


def load_all(context: str) -> None:
    """Build every image and hand it to the cluster of the kubectl context."""
    if not shutil.which("docker"):
        raise LabError("an existing cluster's images are built by docker, which is not here")
    references = {name: reference(name) for name in ("operator", "light-worker", "worker")}
    _build("operator", references["operator"])
    _build("worker", references["worker"])
    _build("build", "localhost/evomerge-build:test")
    light = {"BUILD": "localhost/evomerge-build:test", "OPERATOR": references["operator"]}
    arguments = [f"--build-arg={key}={value}" for key, value in light.items()]
    options: list[str | Path] = [
        "--tag",
        references["light-worker"],
        "--file",
        REPOSITORY / "tests/cluster/light/Dockerfile",
    ]
    run(["docker", "build", *arguments, *options, REPOSITORY])
    for image in references.values():
        run(_handing_over(context, image))
    CACHE.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(references))


def _build(target: str, tag: str) -> None:
    run(["docker", "build", "--target", target, "--tag", tag, str(REPOSITORY)])


def _handing_over(context: str, image: str) -> list[str]:
    if context.startswith("kind-"):
        return ["kind", "load", "docker-image", image, "--name", context.removeprefix("kind-")]
    if context == "minikube" or shutil.which("minikube"):
        return ["minikube", "image", "load", image, "--profile", context]
    raise LabError(f"{context!r} is neither kind nor minikube: how are images to get there?")
