"""The model card of a winner."""

import re

import pytest
import yaml
from huggingface_hub import ModelCard

from evomerge_contract.recipe import Recipe
from evomerge_contract.task import CardFacts, Source
from evomerge_contract.verdict import verdict_of
from evomerge_worker.report.card import model_card
from evomerge_worker.report.licence import HUB_LICENCES, licence_notice, licence_of
from example_runs import DARE_TIES, card_of, finished_run, manifest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def made() -> tuple[CardFacts, list[Source], Recipe]:
    return card_of(finished_run(manifest()))


def _sources(*licences: str | None) -> list[Source]:
    return [Source(name=f"m{i}", uri=f"s3://models/m{i}", license=name) for i, name in enumerate(licences)]


def test_front_matter_is_what_the_hub_takes(made: tuple[CardFacts, list[Source], Recipe]) -> None:
    """huggingface_hub reads it back: library, task, tags, and a licence of the hub's list."""
    data = ModelCard(model_card(*made)).data.to_dict()
    assert data == {
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "mergekit", "evomerge"],
    }
    assert data["license"] in HUB_LICENCES


def test_models_of_the_hub_are_base_models(made: tuple[CardFacts, list[Source], Recipe]) -> None:
    """Only hub ids may stand there, without the pinned commit; other places would make the card invalid."""
    facts, sources, recipe = made
    sources = [sources[0].model_copy(update={"uri": f"hf://augmxnt/shisa-7b@{COMMIT}"}), *sources[1:]]
    data = ModelCard(model_card(facts, sources, recipe)).data
    assert data.base_model == ["augmxnt/shisa-7b"]
    assert data["base_model_relation"] == "merge"


def test_base_counts_only_where_its_weights_are_in_the_result(made: tuple[CardFacts, list[Source], Recipe]) -> None:
    """A base outside the recipe is compared with, not merged: neither its licence nor its name binds the result.

    One that gives its tokenizer has a part in it.
    """
    facts, sources, recipe = made
    sources = [s.model_copy(update={"license": "gemma"}) if s.name == "base" else s for s in sources]
    assert ModelCard(model_card(facts, sources, recipe)).data.license == "apache-2.0"
    with_base = recipe.model_copy(update={"base_model": "base"})
    assert ModelCard(model_card(facts, sources, with_base)).data.license == "other"
    with_its_tokens = recipe.model_copy(update={"tokenizer_source": "base"})
    assert ModelCard(model_card(facts, sources, with_its_tokens)).data.license == "other"


@pytest.mark.parametrize(
    ("licences", "wanted"),
    [
        (("mit", "mit"), ("mit", None, None)),
        (("Apache-2.0", " apache-2.0 "), ("apache-2.0", None, None)),
        ((None, None), (None, None, None)),
        (("mit", None), ("other", "licences-of-the-sources", "LICENSE")),
        (("mit", "apache-2.0"), ("other", "licences-of-the-sources", "LICENSE")),
        (("other", "other"), ("other", "licences-of-the-sources", "LICENSE")),
        (("My Own Licence 1.0", "my own licence 1.0"), ("other", "my-own-licence-1.0", "LICENSE")),
        (("独自ライセンス", "独自ライセンス"), ("other", "licences-of-the-sources", "LICENSE")),
    ],
)
def test_licence_never_claims_more_than_all_sources_say(
    licences: tuple[str | None, ...], wanted: tuple[str | None, ...]
) -> None:
    """One licence of all is the merge's; a silent source, or two licences, make it `other` with name and link."""
    found = licence_of(_sources(*licences))
    assert (found.license, found.license_name, found.license_link) == wanted
    assert found.license in HUB_LICENCES | {"other", None}
    assert found.license_name is None or re.fullmatch(r"[a-z0-9][a-z0-9.-]*", found.license_name)


def test_notice_is_there_exactly_when_the_card_links_to_it() -> None:
    """`license: other` needs a file LICENSE, which names each source's licence."""
    assert licence_notice(_sources("mit", "mit")) is None
    assert licence_notice(_sources(None, None)) is None
    notice = licence_notice(_sources("mit", None))
    assert notice is not None
    assert "- m0: mit" in notice
    assert "- m1: licence not stated" in notice


def test_card_tells_the_whole_story(made: tuple[CardFacts, list[Source], Recipe]) -> None:
    """Verdict, sources with digests, seed, every row with its interval, and the digests of the data."""
    facts, sources, _ = made
    card = model_card(*made)
    assert f"**{verdict_of(facts.conclusion).headline}**" in card
    assert "The base, which is not in the pool, scores 0.970: more than the winner." in card
    assert f"240 candidates, seed {facts.seed}" in card
    for source in sources[:2]:
        assert f"| {source.name} | `{source.uri}` | apache-2.0 | `{source.digest}` |" in card
    for row in facts.conclusion.test:
        assert f"| {row.score:.3f} | [{row.interval.low:.3f}, {row.interval.high:.3f}] |" in card
    for found in facts.data.values():
        assert found.search in card
        assert found.select in card
        assert found.test in card


def test_card_says_whose_config_the_winner_has(made: tuple[CardFacts, list[Source], Recipe]) -> None:
    facts, sources, recipe = made
    assert "- config: " not in model_card(facts, sources, recipe)
    chosen = recipe.model_copy(update={"config_source": "counter"})
    assert "- config: that of counter, for all that was merged: " in model_card(facts, sources, chosen)


def test_card_tells_what_other_masks_make_of_the_winner(made: tuple[CardFacts, list[Source], Recipe]) -> None:
    """Five figures, mean and spread, and which seed the weights have; nothing of it where no masks are drawn."""
    drawn = card_of(finished_run(manifest(parameter_space=DARE_TIES, candidates=40, algorithm="Random")))
    chosen = drawn[0].conclusion.chosen
    assert chosen is not None
    assert chosen.mask_scores is not None
    card = model_card(*drawn)
    assert "by the mean over 5 mask seeds; these weights have mask seed 1" in card
    first, *rest = (f"{value:.3f}" for value in chosen.mask_scores)
    assert f"the winner scores {first}, {', '.join(rest[:-1])} and {rest[-1]} on select items" in card
    assert f"mean {chosen.score:.3f}, spread {chosen.spread:.3f}" in card
    assert "mask" not in model_card(*made)


def test_card_holds_the_very_recipe(made: tuple[CardFacts, list[Source], Recipe]) -> None:
    """The block of YAML reads back as the recipe that was exported."""
    block = re.search(r"```yaml\n(.*?)```", model_card(*made), re.DOTALL)
    assert block
    assert Recipe.model_validate(yaml.safe_load(block[1])) == made[2]


def test_card_keeps_folders_of_this_machine_to_itself(made: tuple[CardFacts, list[Source], Recipe]) -> None:
    """A card may be published: of a local source it names the last folder only."""
    facts, sources, recipe = made
    sources = [s.model_copy(update={"uri": f"file:///home/hanako/secret%20plan/{s.name}"}) for s in sources]
    objectives = [
        o.model_copy(update={"jsonl": o.jsonl.model_copy(update={"test": "file:///home/hanako/test.jsonl"})})
        for o in facts.objectives
    ]
    card = model_card(facts.model_copy(update={"objectives": objectives}), sources, recipe)
    assert "local folder `reader`" in card
    assert "hanako" not in card


def test_names_do_not_break_the_card(made: tuple[CardFacts, list[Source], Recipe]) -> None:
    """Bars, line breaks, HTML and a second front matter in names stay words; the tables keep their columns."""
    facts, sources, recipe = made
    evil = "a|b<script>\n---\nlicense: mit\n---"
    rows = [r.model_copy(update={"skills": {evil: 0.5}}) for r in facts.conclusion.test]
    conclusion = facts.conclusion.model_copy(update={"test": rows, "unscored": {"finalist 3": evil}})
    card = model_card(facts.model_copy(update={"run": evil, "conclusion": conclusion}), sources, recipe)
    assert ModelCard(card).data.license == "apache-2.0"
    assert "<script" not in card
    table = card[card.index("## How good it is") :].split("\n\n")[2].splitlines()
    assert len(table) == 2 + len(rows)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {6}
    assert "\nlicense: mit" not in card
