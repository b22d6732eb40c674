"""The chart as text: what `helm template` makes of values, without a cluster."""

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from releases import CHART, RELEASE

OLDEST = "1.30.0"
"""The Kubernetes that the chart asks for."""


def rendered(
    helm: Callable[..., str], values: Mapping[str, Any], *, namespace: str = RELEASE, name: str = RELEASE
) -> list[dict[str, Any]]:
    """Every document of the chart."""
    options = [f"--namespace={namespace}", f"--kube-version={OLDEST}"]
    text = helm("template", name, CHART, *options, values=values)
    return [document for document in yaml.safe_load_all(text) if document]


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Those of one kind."""
    return [document for document in documents if document["kind"] == kind]
