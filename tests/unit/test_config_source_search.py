"""A manifest's configSource: carried through a search, and left out of what is older than it."""

from pathlib import Path

import yaml

from begun import begun
from documents import document, prepared
from evomerge_contract.manifest import EvoMerge
from evomerge_operator.plan.run import identity, prepare_task
from evomerge_operator.recipes import Seeded, recipe_text
from evomerge_operator.rules import broken_rules


def with_source(source: str | None) -> EvoMerge:
    return EvoMerge.model_validate(document(**({} if source is None else {"configSource": source})))


def test_a_search_carries_it_through(tmp_path: Path) -> None:
    plain = with_source(None)
    chosen = with_source(plain.spec.models[0].name)
    name = chosen.spec.config_source
    assert prepare_task(chosen, "file:///r").config_source == name
    assert identity(chosen, prepared(chosen))["configSource"] == name
    assert "configSource" not in identity(plain, prepared(plain))
    run, proposer = begun(chosen)
    recipe = proposer.space.decode(tuple(gene.start for gene in run.stage.genes))
    assert recipe.config_source == name
    by_role = {baseline.role: baseline.recipe.config_source for baseline in run.baselines}
    assert by_role["average"] == name
    assert by_role["source"] is None
    text = recipe_text(Seeded(recipe, 0), chosen, tmp_path)
    assert "# mergekit passes over config_source" in text
    assert yaml.safe_load(text)["config_source"] != name  # where it lies


def test_a_name_that_is_no_model_is_a_mistake() -> None:
    told = {p.path: p.message for p in broken_rules(with_source("nobody").spec)}
    assert "nobody" in told["spec.configSource"]
