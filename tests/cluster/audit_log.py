"""What the API server's audit log tells of an operator's writes."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from evomerge_operator.kube.lease import DEADLINE_SECONDS
from kubernetes_cluster import Cluster
from searches import Search

_WRITES = ("create", "update", "patch", "delete", "deletecollection")
Entry = dict[str, Any]


def job_creates(search: Search) -> Counter[str]:
    """How often each Job of a search was created with success, by what its name says of step, index and attempt.

    Of a create whose client was killed before the answer, the log says 504 even where the Job was made: it counts when
    no other create of that Job succeeded.
    """
    creates = [(entry["objectRef"]["name"], entry["responseStatus"]["code"]) for entry in _job_creates(search)]
    made = [name for name, code in creates if code < 400]
    unanswered = {name for name, code in creates if code == 504}
    # The name of the search, 8 digits of its UID, and then the attempt.
    return Counter(name.removeprefix(f"{search.name}-")[9:] for name in [*made, *(unanswered - set(made))])


def first_job_create(search: Search, after: datetime) -> datetime:
    """When the first Job of a search was created after a moment."""
    made = (entry for entry in _job_creates(search) if entry["responseStatus"]["code"] < 400)
    return min(at for at in map(_received, made) if at > after)


def writes_about(search: Search) -> list[tuple[datetime, bool]]:
    """When anybody wrote to a search or its children, scheduler and kubelet too, and whether it was the operator."""
    made = datetime.fromisoformat(search.document()["metadata"]["creationTimestamp"].replace("Z", "+00:00"))
    entries = (entry for entry in search.cluster.audit() if _is_write(entry) and "objectRef" in entry)
    about = (entry for entry in entries if entry["objectRef"].get("namespace") == search.namespace)
    names = ((entry["objectRef"].get("name") or "", entry) for entry in about)
    operator = f"system:serviceaccount:{search.namespace}:evomerge"
    found = (e for name, e in names if name == search.name or name.startswith(f"{search.name}-"))
    writes = ((_received(e), e["user"]["username"] == operator) for e in found)
    return sorted(write for write in writes if write[0] >= made)


def unheld_writes(cluster: Cluster, namespace: str) -> tuple[list[str], int]:
    """The writes that an operator of the namespace tried without holding the Lease, and how many were tried in all.

    It is held by the process that renewed it last, until the end of the time in which that one may write. Processes
    are told apart by their tokens: each has its own.
    """
    holder, renewed = "", datetime.min.replace(tzinfo=UTC)
    unheld, count = [], 0
    for entry in sorted(_of_operators(cluster, namespace), key=_received):
        if entry["objectRef"]["resource"] == "leases":
            if entry["responseStatus"]["code"] < 400:
                holder, renewed = _process(entry), _received(entry)
            continue
        count += 1
        late = _received(entry) - renewed > timedelta(seconds=DEADLINE_SECONDS)
        if late or _process(entry) != holder:
            unheld.append(f"{entry['verb']} {entry['requestURI']} by {_process(entry)} at {_received(entry)}")
    return unheld, count


def _job_creates(search: Search) -> Iterator[Entry]:
    """Every create of a Job of the search, however it ended."""
    for entry in search.cluster.audit():
        create = entry["verb"] == "create" and _is_write(entry)
        what = entry.get("objectRef") or {}
        of_search = what.get("namespace") == search.namespace and what.get("name", "").startswith(f"{search.name}-")
        if create and of_search and what["resource"] == "jobs":
            yield entry


def _of_operators(cluster: Cluster, namespace: str) -> Iterator[Entry]:
    name = f"system:serviceaccount:{namespace}:evomerge"
    return (entry for entry in cluster.audit() if entry["user"]["username"] == name and _is_write(entry))


def _is_write(entry: Entry) -> bool:
    return entry["verb"] in _WRITES and "dryRun=All" not in entry["requestURI"]


def _process(entry: Entry) -> str:
    """Who it was: each process has a token of its own."""
    return str(entry["user"]["extra"]["authentication.kubernetes.io/credential-id"][0])


def _received(entry: Entry) -> datetime:
    return datetime.fromisoformat(entry["requestReceivedTimestamp"].replace("Z", "+00:00"))
