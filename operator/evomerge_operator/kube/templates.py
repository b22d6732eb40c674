"""Pod templates laid over each other: the operator's own, its setting's, the manifest's."""

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from evomerge_contract.manifest import PodTemplate

_ONE_SOURCE = ("volumes", "env")


def merged(below: Any, above: Any, field: str = "") -> Any:
    """`above` laid over `below` as Kubernetes lays a patch over a pod template.

    Mappings are merged; of lists of named things (containers, volumes, variables, mounts) those of one name are
    merged and others added; any other list is replaced. `field` is where the two lie: of volumes and variables, which
    have one source each, those of one name are replaced.
    """
    if isinstance(below, Mapping) and isinstance(above, Mapping):
        result = dict(below)
        for key, value in above.items():
            result[key] = merged(result[key], value, key) if key in result else copy.deepcopy(value)
        return result
    if isinstance(below, list) and isinstance(above, list):
        key = _name_key(below + above)
        if key is not None:
            found = {item[key]: item for item in below}
            for item in above:
                whole = item[key] not in found or field in _ONE_SOURCE
                found[item[key]] = item if whole else merged(found[item[key]], item)
            return list(found.values())
    return copy.deepcopy(above)


def _name_key(items: list[Any]) -> str | None:
    for key in ("name", "mountPath", "containerPort"):
        if items and all(isinstance(item, Mapping) and key in item for item in items):
            # Mounts have both: two of one volume differ by their path.
            return "mountPath" if all("mountPath" in item for item in items) else key
    return None


def template_of(text: str) -> dict[str, Any]:
    """The operator's worker template from its setting, JSON.

    Raises:
        ValueError: it is none.
    """
    try:
        return PodTemplate.model_validate_json(text or "{}").wire()
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"EVOMERGE_WORKER_TEMPLATE must be a pod template as JSON, but {wrong}") from error
