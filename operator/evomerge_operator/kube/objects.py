"""Names, labels and owners of what the operator creates."""

from dataclasses import dataclass
from typing import Any

from evomerge_contract.resource import API_VERSION, EVOMERGE, GROUP

Document = dict[str, Any]
"""An object of the API, as JSON has it."""
MANAGED = {"app.kubernetes.io/managed-by": "evomerge"}
NAME_LABEL = f"{GROUP}/name"
UID_LABEL = f"{GROUP}/uid"
STAGE_LABEL = f"{GROUP}/stage"
TASK_LABEL = f"{GROUP}/task"
INDICES = f"{GROUP}/indices"
"""A Job's annotation: the indices of its candidates, with commas between."""
ATTEMPTS = f"{GROUP}/attempts"
"""A Job's annotation: each candidate's attempt that the Job is, in the order of the indices."""
CONFIG_MAPS = f"{GROUP}/config-maps"
"""A Job's annotation: the ConfigMaps that were made for it alone, and go with it."""
TASKS = f"{GROUP}/tasks"
"""A pod's annotation: its tasks, a line each, where they are short enough."""
DIGEST = f"{GROUP}/digest"
"""An annotation: the digest of the tasks, or of a ConfigMap's content."""


@dataclass(frozen=True)
class Parent:
    """The EvoMerge that things belong to."""

    namespace: str
    name: str
    uid: str

    @property
    def prefix(self) -> str:
        """How the names of all its children begin."""
        return f"{self.name}-{self.uid.replace('-', '')[:8]}"

    @property
    def labels(self) -> dict[str, str]:
        """The labels of all its children."""
        return MANAGED | {NAME_LABEL: self.name, UID_LABEL: self.uid}

    @property
    def selector(self) -> str:
        """A label selector for its children."""
        return f"{UID_LABEL}={self.uid}"

    def metadata(self, name: str, **labels: str) -> dict[str, Any]:
        """The metadata of a child; Kubernetes deletes it after its parent, whoever else is down."""
        return {
            "name": name,
            "namespace": self.namespace,
            "labels": self.labels | labels,
            "ownerReferences": [
                {"apiVersion": API_VERSION, "kind": EVOMERGE, "name": self.name, "uid": self.uid, "controller": True}
            ],
        }

    def owns(self, document: Document) -> bool:
        """Whether an object is a child of this very EvoMerge, not of an earlier one of the same name."""
        owners = document.get("metadata", {}).get("ownerReferences", ())
        return any(owner.get("uid") == self.uid for owner in owners)


def candidate_name(parent: Parent, stage: str, index: int) -> str:
    """The name of a MergeCandidate."""
    return f"{parent.prefix}-{stage}-{index:05d}"


def job_name(parent: Parent, step: str, index: int | None, attempt: int) -> str:
    """The name of an attempt's Job: of a candidate, or of a step that is none (prepare, conclude, export)."""
    return f"{parent.prefix}-{step}{'' if index is None else f'-{index:05d}'}-a{attempt}"
