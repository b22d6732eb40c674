"""The commits of models at the hub that a run goes on with, however far their branches have gone since it began."""

import json
from collections.abc import Mapping

from evomerge_contract.manifest import BASE, EvoMerge
from evomerge_contract.report import PrepareResult
from evomerge_operator.local.directory import RunDirectory
from evomerge_operator.plan.run import commits


def known_commits(directory: RunDirectory) -> dict[str, str]:
    """The commits that models at the hub had when the run in a directory began, which it goes on with."""
    try:
        facts = json.loads(directory.facts.read_bytes())
    except FileNotFoundError:
        return {}
    return commits(PrepareResult.model_validate(facts["prepared"]))


def remembered(prepared: PrepareResult, manifest: EvoMerge, earlier: Mapping[str, str]) -> PrepareResult:
    """What was found now, with the commits that were found earlier."""
    places = {m.name: (m.uri, m.adapter) for m in manifest.spec.models}
    if manifest.spec.base is not None:
        places[BASE] = (manifest.spec.base.uri, manifest.spec.base.adapter)
    sources = []
    for source in prepared.sources:
        known = {uri: earlier[uri] for uri in places[source.name] if uri is not None and uri in earlier}
        sources.append(source.model_copy(update={"commits": known or source.commits}))
    return prepared.model_copy(update={"sources": sources})
