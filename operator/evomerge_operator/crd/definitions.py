"""The two CustomResourceDefinitions as documents."""

from typing import Any

import yaml

from evomerge_contract.manifest import EvoMergeSpec
from evomerge_contract.methods import SEARCHABLE
from evomerge_contract.resource import EVOMERGE, EVOMERGES, GROUP, MERGE_CANDIDATE, MERGE_CANDIDATES, VERSION
from evomerge_contract.status import CandidateSpec, CandidateStatus, EvoMergeStatus
from evomerge_operator.crd.cel import Rule, attach
from evomerge_operator.crd.rules import CANDIDATE_ROOT, CANDIDATE_SPEC, CANDIDATE_STATUS, EVOMERGE_ROOT, EVOMERGE_SPEC
from evomerge_operator.crd.schema import Schema, structural

HEADER = "# Made from operator/evomerge_contract by `make crds`; edit it there, not here.\n"
PrinterColumn = tuple[str, str, str]
"""Heading, type and JSON path; a heading in brackets is for `kubectl get --output=wide`."""

_EVOMERGE_COLUMNS: list[PrinterColumn] = [
    ("Status", "string", ".status.phase"),
    ("Stage", "string", ".status.stage"),
    ("Candidates", "string", ".status.candidates"),
    ("Best", "string", ".status.best"),
    ("Best Source", "string", ".status.bestSource"),
    ("Why", "string", ".status.reason"),
    ("Age", "date", ".metadata.creationTimestamp"),
    ("(Message)", "string", ".status.message"),
]
_CANDIDATE_COLUMNS: list[PrinterColumn] = [
    ("Stage", "string", ".spec.stage"),
    ("Gen", "integer", ".spec.generation"),
    ("Fitness", "number", ".status.fitness"),
    ("Outcome", "string", ".status.outcome"),
    ("Seconds", "number", ".status.seconds.total"),
    ("Reason", "string", ".status.reason"),
    ("Age", "date", ".metadata.creationTimestamp"),
    ("(Baseline)", "string", ".spec.name"),
    ("(Attempts)", "integer", ".status.attempts"),
    ("(Node)", "string", ".status.host"),
    ("(Message)", "string", ".status.message"),
]


def definitions() -> dict[str, dict[str, Any]]:
    """Each CustomResourceDefinition by its file name."""
    return {
        f"{GROUP}_{EVOMERGES}.yaml": _definition(
            EVOMERGE,
            EVOMERGES,
            "em",
            _EVOMERGE_COLUMNS,
            _root(_EVOMERGE, _evomerge_spec(), _evomerge_status(), EVOMERGE_ROOT),
        ),
        f"{GROUP}_{MERGE_CANDIDATES}.yaml": _definition(
            MERGE_CANDIDATE,
            MERGE_CANDIDATES,
            "emc",
            _CANDIDATE_COLUMNS,
            _root(_CANDIDATE, _candidate_spec(), _candidate_status(), CANDIDATE_ROOT),
        ),
    }


def files() -> dict[str, str]:
    """The text of each file."""
    return {name: text_of(document) for name, document in definitions().items()}


def chart_files() -> dict[str, str]:
    """The chart's copy: Helm upgrades it with the release, and leaves it there with all resources at an uninstall."""
    kept = {"annotations": {"helm.sh/resource-policy": "keep"}}
    return {name: text_of({**d, "metadata": d["metadata"] | kept}) for name, d in definitions().items()}


def text_of(document: dict[str, Any]) -> str:
    """A document as the file that is kept."""
    return HEADER + yaml.dump(document, Dumper=_Unaliased, sort_keys=False, width=120, allow_unicode=True)


_EVOMERGE = "Which mix of these models is best for a task? Evolves merges of them, one worker pod per candidate."
_CANDIDATE = "A candidate of a search, or a baseline; all of them together are the search's log. Made by the operator."


class _Unaliased(yaml.SafeDumper):
    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _definition(kind: str, plural: str, short: str, columns: list[PrinterColumn], schema: Schema) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["evolution"],  # not "evomerge": kubectl takes a category before a kind of that name
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(*column) for column in columns],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _column(heading: str, type_: str, path: str) -> dict[str, Any]:
    column = {"name": heading.strip("()"), "type": type_, "jsonPath": path}
    return column | ({"priority": 1} if heading.startswith("(") else {})


def _root(description: str, spec: Schema, status: Schema, rules: list[Rule]) -> Schema:
    root: Schema = {
        "description": description,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "The group and version of this schema."},
            "kind": {"type": "string", "description": "The kind of this object."},
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},  # a rule may blame it
            "spec": spec,
            "status": status,
        },
    }
    attach(root, {"": rules})
    return root


def _evomerge_spec() -> Schema:
    """The manifest's spec, narrowed to what a cluster can do."""
    spec = structural(EvoMergeSpec)
    spec["required"] = [*spec["required"], "export"]
    method = spec["properties"]["stages"]["items"]["properties"]["parameterSpace"]["properties"]["method"]
    del method["maxLength"]
    method["enum"] = list(SEARCHABLE)
    attach(spec, EVOMERGE_SPEC)
    return spec


def _evomerge_status() -> Schema:
    status = structural(EvoMergeStatus, fill=True)
    status["properties"]["conditions"] |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    return status


def _candidate_spec() -> Schema:
    spec = structural(CandidateSpec)
    attach(spec, CANDIDATE_SPEC)
    return spec


def _candidate_status() -> Schema:
    status = structural(CandidateStatus, fill=True)
    attach(status, CANDIDATE_STATUS)
    return status
