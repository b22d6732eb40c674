"""The page of a run."""

import math
import random
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endings import ending
from evomerge_contract.candidate import Candidate, GeneLabel
from evomerge_contract.manifest import EvoMerge, Parameter
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import ConcludeResult, Interval, RunReport
from evomerge_contract.verdict import verdict_of
from evomerge_operator.spaces import make_space
from evomerge_worker.report import render
from evomerge_worker.report.accounts import failures, phases
from evomerge_worker.report.answer import answer, concluded
from evomerge_worker.report.axes import spread
from evomerge_worker.report.colour import Shade, shade
from evomerge_worker.report.fitness_chart import MOST_POINTS, improvements, thinned
from evomerge_worker.report.genome_chart import stretches
from evomerge_worker.report.interval_chart import interval_charts
from evomerge_worker.report.path_chart import path_chart
from evomerge_worker.report.scale import fitting
from evomerge_worker.report.score_table import score_table
from evomerge_worker.report.winner_values import SHARED, places
from example_runs import DARE_TIES, finished_run, manifest, prepared

VOID = {"meta", "br", "hr", "img", "link", "input"}
COMPONENTS = {
    "method": "task_arithmetic",
    "groups": {"components": True},
    "parameters": {"weight": {"min": "-1", "max": "1"}, "lambda": {"min": "0.5", "max": "1.5"}},
}


class Page(HTMLParser):
    """A page as read: its text and its elements; `open` must be empty at the end."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str) -> int:
        return sum(t == tag for t, _ in self.elements)


@pytest.fixture(scope="module")
def run() -> RunReport:
    return finished_run(manifest())


@pytest.fixture(scope="module")
def html(run: RunReport) -> str:
    return render(run)


def test_page_needs_nothing_else(html: str) -> None:
    """No script, and nothing that a browser would fetch."""
    page = Page(html)
    assert page.open == []
    assert page.count("script") == page.count("link") == page.count("img") == page.count("iframe") == 0
    assert not [a for _, attributes in page.elements for a in attributes if a in ("src", "href", "srcset", "action")]
    assert "url(" not in html
    assert "@import" not in html


def test_page_answers_in_order(html: str) -> None:
    """Did it work, how, what came out, can it be trusted: in this order."""
    headings = re.findall(r"<h2[^>]*>([^<]*)</h2>", html)
    assert headings == ["Did it work?", "How did it get there?", "What came out?", "Can I trust it?"]


def test_page_shows_every_row_of_the_table(run: RunReport, html: str) -> None:
    """Each model's score and interval, and the winner's lead with its own interval, as text."""
    text = Page(html).text
    assert run.conclusion is not None
    for row in run.conclusion.test:
        assert f"{row.score:.3f}" in text
        assert f"[{row.interval.low:.3f}, {row.interval.high:.3f}]" in text
        if row.winner_minus is not None and row.winner_minus > 0:
            assert f"+{row.winner_minus:.3f}" in text
    assert "base not in the pool" in text
    assert "reader best source" in text


def test_page_tells_where_all_came_from(run: RunReport, html: str) -> None:
    """Digests of sources and data, licences, seed and algorithm version are on the page."""
    text = Page(html).text
    digests = [s.digest for s in run.prepared.sources]
    digests += [split.digest for splits in run.prepared.data.values() for split in splits.values()]
    for wanted in [*digests, "apache-2.0", run.candidates[0].algorithm, "s3://models/reader", "OutOfMemory"]:
        assert wanted in text


def test_page_says_whose_config_all_merges_have(run: RunReport, html: str) -> None:
    spec = run.manifest["spec"] | {"configSource": "counter"}
    chosen = render(run.model_copy(update={"manifest": run.manifest | {"spec": spec}}))
    assert "all merges with the config of counter" in Page(chosen).text
    assert "with the config of" not in Page(html).text


def test_charts_say_in_words_what_they_show(html: str) -> None:
    """Every picture has a label for those who do not see it."""
    pictures = [a for tag, a in Page(html).elements if a.get("role") == "img" or tag == "svg"]
    assert len(pictures) >= 8
    assert all(a.get("role") == "img" and a.get("aria-label") for a in pictures)


def test_equal_runs_give_equal_pages(run: RunReport, html: str) -> None:
    """Nothing of the clock or the machine is on the page; a run that came through JSON is the same run."""
    assert render(RunReport.model_validate_json(run.model_dump_json(by_alias=True))) == html


def test_a_report_whose_genes_are_names_is_still_read() -> None:
    """Run files of the first version hold names, which are taken apart once, on reading."""
    wire = finished_run(manifest(candidates=20)).wire()
    wire["genes"] = ["weight/layers-0-1/reader", "t/all"]
    genes = RunReport.model_validate(wire).genes
    assert genes == [
        GeneLabel(parameter="weight", group="layers-0-1", model="reader"),
        GeneLabel(parameter="t", group="all"),
    ]


def test_names_are_text_not_markup(run: RunReport) -> None:
    """HTML in names, skills, genes, messages and licences is shown, never obeyed."""
    evil = "<script>alert('x')</script>&\""
    assert run.conclusion is not None
    rows = [r.model_copy(update={"skills": {evil: 0.5}}) for r in run.conclusion.test]
    failed = run.candidates[79].model_copy(update={"message": evil})
    spec = run.manifest["spec"]
    models = [m | {"license": evil, "uri": f"s3://{evil}"} for m in spec["models"]]
    page = render(
        run.model_copy(
            update={
                "run": evil,
                "genes": [g.model_copy(update={"group": f"{evil}-{i}"}) for i, g in enumerate(run.genes)],
                "candidates": [*run.candidates[:79], failed, *run.candidates[80:]],
                "conclusion": run.conclusion.model_copy(update={"test": rows, "unscored": {evil: evil}}),
                "manifest": run.manifest | {"spec": spec | {"models": models}},
            }
        )
    )
    assert "<script" not in page
    assert Page(page).count("script") == 0
    assert Page(page).text.count("<script>alert('x')</script>&\"") >= 5


def test_japanese_is_shown(run: RunReport) -> None:
    """Skills in any script appear as they are."""
    assert run.conclusion is not None
    rows = [r.model_copy(update={"skills": {"漢数字の足し算": 0.5}}) for r in run.conclusion.test]
    page = render(run.model_copy(update={"conclusion": run.conclusion.model_copy(update={"test": rows})}))
    assert "漢数字の足し算" in page


@pytest.mark.parametrize("done", [0, 1, 90])
def test_unfinished_run_says_so_and_shows_what_there_is(done: int) -> None:
    """At the top it says how far the run is, whose best is not sold as a result."""
    page = Page(render(finished_run(manifest(), done=done)))
    assert f"Not finished: {done} of 240 candidates are done." in page.text
    assert ("so they flatter it" in page.text) == (done > 0)
    assert "winner minus this" not in page.text
    assert "plain average 0.346" in page.text


def test_run_whose_candidates_all_failed() -> None:
    """There is no score to show, only the failures and why the search ended."""
    page = Page(render(finished_run(manifest(failures=8), fail_every=1, done=9)))
    assert "The search ended early: more candidates failed (9) than may (8)." in page.text
    assert "9 candidates failed (OutOfMemory)" in page.text
    assert "Nothing yet." in page.text


def test_a_baseline_has_the_role_that_it_says_and_else_that_of_its_name() -> None:
    run = finished_run(manifest(parameter_space=DARE_TIES))
    for role in ("default", None):
        said = [c.model_copy(update={"role": role}) for c in run.baselines]
        page = Page(render(run.model_copy(update={"baselines": said})))
        drawn = {attrs["class"] for tag, attrs in page.elements if tag == "line" and "line " in str(attrs.get("class"))}
        assert ("line source" in drawn) == (role is None)


def test_run_without_any_score() -> None:
    """Neither a candidate nor a baseline has a score: the page stands without its chart."""
    run = finished_run(manifest(), fail_every=1, done=3)
    lost = [c.model_copy(update={"outcome": "Failed", "fitness": None}) for c in run.baselines]
    text = Page(render(run.model_copy(update={"baselines": lost}))).text
    assert "Nothing has come out: all 3 finished candidates failed." in text
    assert "No candidate has been scored." in text
    assert "reader, counter, plain average, task arithmetic, default DARE-TIES and base" in text


@pytest.mark.parametrize(("done", "finished"), [(10, True), (13_000, True), (3000, False)])
def test_long_runs_stay_small(done: int, finished: bool) -> None:
    """However many candidates, the page stays below 1.5 MB and says when it draws only some of them."""
    made = manifest(candidates=done, algorithm="Random", failures=done)
    run = finished_run(made, fail_every=7, done=None if finished else done)
    page = render(run)
    drawn = page.count("<title>candidate ")
    assert len(page.encode()) < 1_500_000
    scored = sum(c.fitness is not None for c in run.candidates)
    assert drawn == min(scored, MOST_POINTS)
    assert (f"Of {scored:,} candidates {drawn:,} are drawn" in page) == (drawn < scored)


def test_large_genomes_stay_small() -> None:
    """600 genes of three models and 98 layers are all on the page, below 1.5 MB."""
    made = manifest(sources=("a", "b", "c"), parameter_space=DARE_TIES, candidates=120, algorithm="Random")
    run = finished_run(made, layers=98)
    page = render(run)
    assert len(run.genes) == 600
    assert len(page.encode()) < 1_500_000
    assert len(re.findall(r"M896 [0-9.]+h44", page)) == 600  # the winner's column of the genome chart


def test_single_gene() -> None:
    """One gene, one group: the winner's grid is one row for the whole model."""
    space = {"method": "slerp", "groups": {"layers": 1}, "parameters": {"t": {"min": "0", "max": "1"}}}
    run = finished_run(manifest(parameter_space=space, candidates=20))
    assert run.genes == [GeneLabel(parameter="t", group="all")]
    assert "whole model" in Page(render(run)).text


def test_several_objectives_have_columns() -> None:
    """With several objectives each has its score beside the total; perplexity is marked as such."""
    text = Page(render(finished_run(manifest(metrics={"sums-ja": "exact_match", "wiki": "perplexity"})))).text
    assert "wiki (perplexity)" in text
    assert "sums-ja/reading" in text
    assert "Perplexity counts negatively" in text


def _perplexity(run: RunReport) -> RunReport:
    """The same run with perplexities from 14 to 500 instead of accuracies: higher accuracy, lower perplexity."""

    def bad(value: float) -> float:
        return -10 / max(value, 0.00005)

    assert run.conclusion is not None
    rows = [
        r.model_copy(
            update={
                "score": bad(r.score),
                "interval": Interval(low=bad(r.interval.low), high=bad(r.interval.high)),
                "scores": {"wiki": -bad(r.score)},
                "skills": {},
            }
        )
        for r in run.conclusion.test
    ]
    scored = [
        c if c.fitness is None else c.model_copy(update={"fitness": bad(c.fitness)})
        for c in [*run.baselines, *run.candidates]
    ]
    select = [s.model_copy(update={"fitness": bad(s.fitness), "score": bad(s.score)}) for s in run.conclusion.select]
    return run.model_copy(
        update={
            "baselines": scored[: len(run.baselines)],
            "candidates": scored[len(run.baselines) :],
            "conclusion": run.conclusion.model_copy(update={"test": rows, "select": select}),
        }
    )


def test_perplexity_counts_negatively() -> None:
    """Fitness below zero: the best perplexity is the lowest, and is what the table marks."""
    run = _perplexity(finished_run(manifest(metrics={"wiki": "perplexity"}), skills=()))
    assert run.conclusion is not None
    objectives = EvoMerge.model_validate(run.manifest).spec.evaluation.objectives
    (column,) = score_table(run.conclusion, objectives).objectives
    assert column.best == min(r.scores["wiki"] for r in run.conclusion.test if r.role != "base")
    ticks = re.findall(r'class="tick end">(−1[0]*)<', render(run))
    assert {"−10", "−100"} <= set(ticks)  # orders of magnitude share one chart


@pytest.mark.parametrize(
    ("end", "tone"),
    [
        (ending((0.1, 0.2), average=(0.05, 0.1)), "good"),
        (ending((0.1, 0.2)), "good"),
        (ending((0.1, 0.2), average=(-0.01, 0.1)), "mixed"),
        (ending((-0.01, 0.05), average=(0.05, 0.1)), "bad"),
        (ending((-0.1, -0.05)), "bad"),
        (ending((0.1, 0.2), spread=0.2), "mixed"),
        (ending((0.1, 0.2), spread=0.1), "good"),
        (ending((-0.1, -0.05), spread=0.2), "bad"),
    ],
)
def test_the_page_has_the_verdicts_words_and_shows_as_good_only_a_lead_beyond_chance_over_all_that_needs_no_search(
    end: ConcludeResult, tone: str
) -> None:
    found, verdict = concluded(end), verdict_of(end)
    assert (found.tone, found.headline) == (tone, verdict.headline)
    assert {verdict.figures, *verdict.masks} <= set(found.details)


def test_page_shows_every_finalist_with_every_mask() -> None:
    run = finished_run(manifest(parameter_space=DARE_TIES, candidates=40, algorithm="Random"))
    assert run.conclusion is not None
    html = render(run)
    text = " ".join(" ".join(Page(html).words).split())
    assert "Luck of the draw" in text
    assert "mask seed 1 (exported) 2 3 4 5 mean spread" in text
    for row in run.conclusion.select:
        assert row.mask_scores is not None
        assert row.spread is not None
        figures = [f"{value:.3f}" for value in (*row.mask_scores, row.score, row.spread)]
        assert " ".join(figures) in text


def test_page_of_a_method_without_masks_says_nothing_of_them(html: str) -> None:
    assert not re.search(r"mask", html, re.IGNORECASE)


@pytest.mark.parametrize(("base", "than"), [(0.97, "more than"), (0.3, "less than"), (0.5, "as much as")])
def test_verdict_says_what_the_base_can_do(base: float, than: str) -> None:
    """A base outside the pool that is better than the winner is not kept silent."""
    end = ending((0.1, 0.2), base=base)
    assert f"The base, which is not in the pool, scores {base:.3f}: {than} the winner." in concluded(end).details


def test_search_that_is_done_but_not_concluded() -> None:
    """All candidates are finished, yet without test items there is no result."""
    run = finished_run(manifest(candidates=20), done=20)
    spec = EvoMerge.model_validate(run.manifest).spec
    assert answer(run, spec).headline.startswith("Not finished: the search is done, but")


@given(st.lists(st.floats(-1e5, 1e5, allow_subnormal=False), min_size=1, max_size=20))
def test_scale_keeps_order_and_shows_everything(values: list[float]) -> None:
    """Whatever the values, they lie within the picture, in order, with ticks among them."""
    scale = fitting(values, 300.0, 10.0)
    pixels = [scale(v) for v in sorted(values)]
    assert all(9.999 <= p <= 300.001 for p in pixels)
    assert all(a >= b - 1e-6 for a, b in pairwise(pixels))
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 16
    assert all(9.999 <= scale(v) <= 300.001 for v, _ in ticks)
    assert len({words for _, words in ticks}) == len(ticks)


def test_scale_of_perplexities_is_logarithmic() -> None:
    """A merge that broke down must not squeeze all others into one line."""
    scale = fitting([-8.0, -20.0, -200_000.0], 300.0, 10.0)
    assert scale.log
    assert scale(-20.0) - scale(-8.0) > 15
    assert [words for _, words in scale.ticks()] == ["−10", "−100", "−1000", "−10000", "−100000"]


@given(st.lists(st.floats(0, 340), min_size=1, max_size=30))
def test_labels_keep_their_distance(wanted: list[float]) -> None:
    """Labels beside lines stay in order and in the picture, and do not overlap while there is room."""
    placed = spread(wanted, 17, 0, 340)
    assert all(-1e-6 <= p <= 340 + 1e-6 for p in placed)
    ordered = [p for _, p in sorted(zip(wanted, placed, strict=True))]
    gaps = [b - a for a, b in pairwise(ordered)]
    assert all(g >= min(17, 340 / max(1, len(wanted) - 1)) - 1e-6 for g in gaps)
    if len(wanted) == 1:
        assert placed == wanted


def _candidates(fitness: list[float | None]) -> list[Candidate]:
    run = finished_run(manifest(), done=1)
    return [
        run.candidates[0].model_copy(
            update={"index": i, "fitness": f, "outcome": "Failed" if f is None else "Succeeded", "reason": None}
        )
        for i, f in enumerate(fitness)
    ]


def test_thinning_keeps_what_matters() -> None:
    """Every new best and the winner stay; the rest is sampled evenly, so that no part of the search is missing."""
    rng = random.Random(3)
    candidates = _candidates([None if rng.random() < 0.1 else rng.random() for _ in range(9000)])
    kept = {c.index for c in thinned(candidates, 8888)}
    assert len(kept) <= MOST_POINTS
    assert {c.index for c in improvements(candidates)} <= kept
    assert (8888 in kept) == (candidates[8888].fitness is not None)
    per_part = Counter(i // 900 for i in kept)
    assert max(per_part.values()) < 1.3 * min(per_part.values())


@given(st.lists(st.none() | st.floats(0, 1), max_size=200), st.integers(1, 600))
def test_stretches_hold_each_candidate_once(fitness: list[float | None], genes: int) -> None:
    """The columns of the genome chart cut the search without gap or overlap and show the best of each part."""
    columns = stretches(_candidates(fitness), genes)
    starts = [start for start, _ in columns] + [len(fitness)]
    assert starts[0] == 0
    for (start, best), end in zip(columns, starts[1:], strict=True):
        scored = [f for f in fitness[start:end] if f is not None]
        assert (best.fitness if best else None) == max(scored, default=None)
        assert best is None or start <= best.index < end


@pytest.mark.parametrize("space", [DARE_TIES, COMPONENTS, None], ids=["every-layer", "components", "blocks"])
def test_winner_grid_covers_every_tensor_with_the_genes_values(space: dict[str, object] | None) -> None:
    """Each tensor is in one place of the grid, and every gene's value is there under its model."""
    spec = manifest(parameter_space=space).spec
    found = prepared(spec)
    made = make_space(spec.stages[0], [m.name for m in spec.models], spec, found.layout, "bfloat16")
    rng = random.Random(4)
    genome = tuple(round(rng.uniform(g.low, g.high), 6) for g in made.genes)
    shown = places(made.decode(genome), found.layout)
    layout = found.layout
    assert sum(p.tensors for p in shown) == (
        len(layout.before) + layout.layers * len(layout.layer_tensors) + len(layout.after)
    )
    for gene, value in zip(made.genes, genome, strict=True):
        assert value in {p.values[gene.parameter, gene.model or SHARED] for p in shown}, gene.name


def test_winner_grid_has_the_source_without_a_gene() -> None:
    """Weights that sum to one do so in every place: the last source's come from the recipe."""
    run = finished_run(manifest(sources=("a", "b", "c")))
    assert run.recipe is not None
    shown = places(run.recipe, run.prepared.layout)
    assert [p.label for p in shown][:3] == ["embeddings", "layers 0–1", "layers 2–3"]
    assert shown[-1].label == "final norm and head"
    for place in shown:
        assert math.isclose(sum(place.values["weight", m] for m in "abc"), 1.0, abs_tol=1e-9)


def test_winner_grid_of_a_recipe_for_whole_models() -> None:
    """A recipe without slices has filters too; the parts they tell apart are named by their modules."""
    recipe = Recipe.model_validate(
        {
            "merge_method": "linear",
            "models": [
                {"model": "a", "parameters": {"weight": [{"filter": "self_attn", "value": 0.25}, {"value": 0.75}]}},
                {"model": "b", "parameters": {"weight": 0.5}},
            ],
        }
    )
    shown = places(recipe, prepared(manifest().spec).layout)
    weights = {p.label: p.values["weight", "a"] for p in shown}
    assert weights["layers 0–11: self_attn"] == 0.25
    assert weights["layers 0–11: input_layernorm, mlp, post_attention_layernorm"] == 0.75
    assert weights["embeddings"] == 0.75


def test_the_winner_grid_reads_filters_as_the_merge_does() -> None:
    """`*` is every tensor, and experts answer to the name they have where they are fused."""
    weight = [{"filter": "experts.down_proj", "value": 0.125}, {"filter": "*", "value": 0.5}, {"value": 0.75}]
    models = [{"model": "a", "parameters": {"weight": weight}}]
    recipe = Recipe.model_validate({"merge_method": "linear", "models": models})
    experts = [f"block_sparse_moe.experts.{i}.w{w}.weight" for i in (0, 1) for w in (1, 2)]
    layout = prepared(manifest().spec).layout.model_copy(update={"layer_tensors": experts})
    weights = {p.label: p.values["weight", "a"] for p in places(recipe, layout)}
    assert weights == {
        "embeddings": 0.5,
        "layers 0–11: block_sparse_moe.experts.0.w1, block_sparse_moe.experts.1.w1": 0.5,
        "layers 0–11: block_sparse_moe.experts.0.w2, block_sparse_moe.experts.1.w2": 0.125,
        "final norm and head": 0.5,
    }


def test_colours_diverge_from_the_natural_middle() -> None:
    """1/n for weights that sum to one, 0 where both signs occur; else from pale to strong."""
    third = shade(Parameter(min="0", max="1", sums_to_one=True), 3, [])
    assert (third.centre, third.css(1 / 3), third.css(1.0)) == (1 / 3, "d5", "d10")
    assert third.css(0.0) != "d0"  # as far from the middle as 2/3, not as 1
    both = shade(Parameter(min="-1", max="2"), 2, [])
    assert (both.css(0.0), both.css(2.0), both.css(-1.0)) == ("d5", "d10", "d2")
    plain = shade(Parameter(min="0.1", max="1"), 2, [])
    assert (plain.css(0.1), plain.css(1.0)) == ("q0", "q8")
    assert shade(None, 2, [0.5, 0.5]).css(0.5) == "q0"


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_colours_never_run_backwards(a: float, b: float) -> None:
    """A larger value never has a colour nearer to the low end, in the scale or beyond its ends."""
    for scale in (Shade(-1, 2, 0.0), Shade(0, 1, 0.5), Shade(0, 2)):
        low, high = sorted((a, b))
        assert int(scale.css(low)[1:]) <= int(scale.css(high)[1:])


def _luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.1)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_figures_on_colours_can_be_read(html: str) -> None:
    """In every cell of the heat map the figure's contrast is at least 4.5 : 1, in the light and in the dark palette."""
    pairs = re.findall(r"--cell: (#\w{6}); --ink: (#\w{6});", html)
    assert len(pairs) == 2 * (11 + 9)
    for cell, ink in pairs:
        low, high = sorted((_luminance(cell), _luminance(ink)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (cell, ink)


def test_intervals_share_one_scale(run: RunReport) -> None:
    """A dot lies on its bar, and a higher score lies further right, across all rows."""
    assert run.conclusion is not None
    rows = run.conclusion.test
    found = {}
    for row, chart in zip(rows, interval_charts(rows), strict=True):
        bar = re.search(r'class="bar \w+" x1="([\d.]+)" x2="([\d.]+)"', chart)
        dot = re.search(r'cx="([\d.]+)"', chart)
        assert bar
        assert dot
        assert float(bar[1]) <= float(dot[1]) <= float(bar[2])
        found[row.score] = float(dot[1])
    assert [found[s] for s in sorted(found)] == sorted(found.values())


def test_time_is_accounted_for_in_full() -> None:
    """What no phase explains is `other`; failed candidates do not count; the shares sum to one."""
    timed = [
        c.model_copy(update={"seconds": s})
        for c, s in zip(
            _candidates([0.1, 0.2, 0.3, None]),
            [{"merge": 1.0, "total": 2.0}, {"merge": 2.0, "total": 2.0}, {"merge": 3.0, "total": 4.0}, {"total": 99.0}],
            strict=True,
        )
    ]
    found = {p.name: p for p in phases(timed)}
    assert (found["merge"].median, found["other"].median) == (2.0, 1.0)
    assert math.isclose(sum(p.share for p in found.values()), 1.0)
    assert math.isclose(found["other"].share, 2 / 8)
    assert phases(_candidates([None])) == []


def test_failures_are_counted_by_reason() -> None:
    """The most frequent reason comes first, with the message of its first candidate; baselines go by name."""
    lost = [
        c.model_copy(update={"reason": reason, "message": f"{reason} {c.index}"})
        for c, reason in zip(_candidates([None] * 3), ["TimedOut", "OutOfMemory", "OutOfMemory"], strict=True)
    ]
    lost[2] = lost[2].model_copy(update={"name": "plain average"})
    found = [(f.reason, f.names, f.message) for f in failures([*lost, *_candidates([0.5])])]
    assert found == [
        ("OutOfMemory", ["1", "plain average"], "OutOfMemory 1"),
        ("TimedOut", ["0"], "TimedOut 0"),
    ]


def test_drawing_needs_no_torch() -> None:
    """A report is drawn in a process that never loads torch, numpy or transformers."""
    code = "import sys, evomerge_worker.report; print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_template_is_shipped() -> None:
    """The template and the style sheet have the ending that the package's data declares."""
    folder = Path(sys.modules["evomerge_worker.report"].__file__ or "").parent
    assert {p.name for p in folder.iterdir() if p.suffix not in (".py", "")} == {"report.css.j2", "report.html.j2"}


def test_the_path_of_a_winner_of_a_data_flow_search_is_drawn_layer_by_layer() -> None:
    slices = [("a", (0, 2)), ("b", (1, 3)), ("a", (1, 2))]
    recipe = Recipe.model_validate(
        {
            "merge_method": "passthrough",
            "slices": [{"sources": [{"model": model, "layer_range": span}]} for model, span in slices],
        }
    )
    drawn = str(path_chart(recipe))
    titles = re.findall(r"<title>(.*?)</title>", drawn)
    assert titles == [
        "layer 0: layer 0 of a",
        "layer 1: layer 1 of a",
        "layer 2: layer 1 of b",
        "layer 3: layer 2 of b",
        "layer 4: layer 1 of a",
    ]
    assert 'aria-label="The path of 5 layers through a, b."' in drawn


def test_of_more_genes_than_a_page_has_room_for_none_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished_run(manifest(candidates=20))
    assert "The genomes over time" in render(run)
    monkeypatch.setattr(sys.modules["evomerge_worker.report.render"], "MOST_GENES", len(run.genes) - 1)
    assert "The genomes over time" not in render(run)
