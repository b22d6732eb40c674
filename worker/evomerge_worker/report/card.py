"""The model card (README.md) of an exported winner: front matter that the hub takes, then all that a reader needs."""

import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub import ModelCard, ModelCardData

from evomerge_contract.manifest import SPLITS
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import ConcludeResult
from evomerge_contract.task import CardFacts, Source
from evomerge_contract.text import count, interval, listing, score
from evomerge_contract.verdict import difference, row_name
from evomerge_worker.report.answer import concluded
from evomerge_worker.report.licence import licence_of
from evomerge_worker.report.score_table import Table, counted_negatively, score_table

_HUB_ID = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@.*)?")


_COST = " Cost: the parameters that a token passes through, as a multiple of the first source's."


def model_card(facts: CardFacts, sources: list[Source], recipe: Recipe) -> str:
    """The whole README.md. `sources` may hold more than the recipe names; only those it names are in the merge."""
    merged = merged_sources(sources, recipe, facts.earlier)
    body = "\n\n".join(
        [
            f"# {_plain(facts.run)}",
            _what_it_is(facts, merged),
            _how_it_was_made(facts, merged, recipe),
            _how_good_it_is(facts),
            _the_recipe(recipe, facts.earlier),
            _how_to_load(),
            _the_data(facts),
        ]
    )
    return str(ModelCard(f"---\n{_front_matter(merged).to_yaml()}\n---\n\n{body}\n"))


def merged_sources(sources: list[Source], recipe: Recipe, earlier: Mapping[str, Recipe] | None = None) -> list[Source]:
    """The sources whose weights, tokens or config are in the result, in their order; of winners of `earlier` stages,
    those that they were merged from."""
    earlier = earlier or {}
    named = {name for one in (recipe, *earlier.values()) for name in (*one.named_models, one.vocabulary)}
    return [s for s in sources if s.name in named - earlier.keys()]


def _front_matter(merged: list[Source]) -> ModelCardData:
    licence = licence_of(merged)
    hub_ids = [found[1] for s in merged if (found := _HUB_ID.fullmatch(s.uri))]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=licence.license,
        license_name=licence.license_name,
        license_link=licence.license_link,
        base_model=hub_ids or None,
        base_model_relation="merge" if hub_ids else None,
        tags=["merge", "mergekit", "evomerge"],
    )


def _what_it_is(facts: CardFacts, merged: list[Source]) -> str:
    found = concluded(facts.conclusion)
    return (
        f"A merge of {count(len(merged), 'model')}, found by evolutionary search (EvoMerge, after "
        "[arXiv 2403.13187](https://arxiv.org/abs/2403.13187)). No weights were trained.\n\n"
        f"**{_plain(found.headline)}** {_plain(' '.join(found.details))}"
    )


def _how_it_was_made(facts: CardFacts, merged: list[Source], recipe: Recipe) -> str:
    rows = [[s.name, _place(s), s.license or "not stated", f"`{s.digest}`" if s.digest else "–"] for s in merged]
    return (
        "## How it was made\n\n"
        f"- method: {facts.method}\n"
        f"{_whose_config(recipe)}{_stages(facts)}"
        f"- search: {facts.algorithm}, {count(facts.candidates, 'candidate')}, seed {facts.seed}\n"
        f"- winner: candidate {facts.conclusion.winner}, chosen on select items among the "
        f"{len(facts.conclusion.select)} best on search items{_by_mean(facts)}\n\n"
        + _markdown(["model", "place", "licence", "content digest"], rows)
    )


def _stages(facts: CardFacts) -> str:
    """The stages before the winner's, where it is made of their winners too."""
    if not facts.earlier:
        return ""
    made = "; ".join(f"{name} of {listing(one.named_models)}" for name, one in facts.earlier.items())
    return f"- stages before: {_plain(made)}\n"


def _whose_config(recipe: Recipe) -> str:
    if recipe.config_source is None:
        return ""
    return (
        f"- config: that of {_plain(recipe.config_source)}, for all that was merged: the models' own may differ in "
        "what they compute (the rope base, the window or an epsilon, for instance)\n"
    )


def _by_mean(facts: CardFacts) -> str:
    seeds = facts.conclusion.mask_seeds
    return (
        f", by the mean over {count(len(seeds), 'mask seed')}; these weights have mask seed {seeds[0]}" if seeds else ""
    )


def _how_good_it_is(facts: CardFacts) -> str:
    table = score_table(facts.conclusion, facts.objectives)
    rows = [_figures(table, i, facts.conclusion) for i in range(len(table.rows))]
    head = ["model", "total", "95 % interval", "winner minus this", *(c.label for c in table.objectives + table.skills)]
    head += ["layers", "parameters", "cost"] if table.sized else []
    asked = ", ".join(f"{o.name} ({o.metric})" for o in facts.objectives)
    negative = f" {said}." if (said := counted_negatively(facts.objectives)) else ""
    return (
        "## How good it is\n\n"
        f"{count(facts.conclusion.test_items, 'test item')} that the search has not seen: {asked}. "
        f"The intervals are paired bootstrap intervals.{negative} Scores on these items say little about other "
        f"tasks.{_COST if table.sized else ''}\n\n"
        + _markdown(head, rows, numbers_from=1)
        + "".join(
            f"\n\n{_plain(n)} could not be scored: {_plain(why)}." for n, why in facts.conclusion.unscored.items()
        )
    )


def _figures(table: Table, i: int, conclusion: ConcludeResult) -> list[str]:
    row = table.rows[i]
    cells = [row_name(row, conclusion), score(row.score), interval(row.interval), difference(row)]
    cells += [column.text(i) for column in table.objectives + table.skills]
    return cells + ([str(row.layers), f"{row.parameters:,}", f"{row.cost:.2f}"] if table.sized else [])


def _the_recipe(recipe: Recipe, earlier: Mapping[str, Recipe] | None) -> str:
    documents = [{"name": name} | one.plain() for name, one in (earlier or {}).items()]
    documents.append(recipe.plain())
    text = yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    stages = ", a document for each stage," if earlier else ""
    return (
        f"## The recipe\n\nA [mergekit](https://github.com/arcee-ai/mergekit) configuration{stages} whose names stand "
        f"for the models above.\n\n```yaml\n{text}```"
    )


def _how_to_load() -> str:
    return (
        "## How to load it\n\n```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # this folder, or its name on the hub\n'
        'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n```"
    )


def _the_data(facts: CardFacts) -> str:
    rows = [[name, split, f"`{getattr(found, split)}`"] for name, found in facts.data.items() for split in SPLITS]
    return "## The data it was judged by\n\n" + _markdown(["objective", "split", "content digest"], rows)


def _place(source: Source) -> str:
    """Where a source lies; of a local folder only its name, since the card may be published."""
    model = _place_of(source.uri)
    return model if source.adapter is None else f"{model} with the adapter {_place_of(source.adapter)}"


def _place_of(uri: str) -> str:
    if found := _HUB_ID.fullmatch(uri):
        return f"[{uri.removeprefix('hf://')}](https://huggingface.co/{found[1]})"
    if uri.startswith("file://"):
        return f"local folder `{unquote(urlsplit(uri).path).rstrip('/').rsplit('/', 1)[-1]}`"
    return f"`{uri}`"


def _markdown(head: list[str], rows: list[list[str]], numbers_from: int | None = None) -> str:
    """A Markdown table; columns from `numbers_from` on are aligned to the right."""
    rules = [":--" if numbers_from is None or i < numbers_from else "--:" for i in range(len(head))]
    cells = [[_cell(h) for h in head], rules, *([_cell(c) for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _cell(words: str) -> str:
    """Words for a table's cell: a bar, a line break or HTML in them means nothing."""
    return words.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _plain(words: str) -> str:
    """Words that Markdown and HTML leave as they are."""
    return re.sub(r"([\\`*_#|])", r"\\\1", words).replace("<", "&lt;").replace("\n", " ")
