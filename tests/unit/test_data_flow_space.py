"""The data-flow space: slots, scales, and the path of layers that a genome means."""

import pickle
from collections.abc import Mapping
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from documents import LAYOUT, document, prepared
from evomerge_contract.candidate import Genome
from evomerge_contract.filters import names, value_for
from evomerge_contract.genome import genome_of, genome_text
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import Flow, Layout
from evomerge_operator.errors import InputError
from evomerge_operator.local.preview import plan_lines, spaces_of
from evomerge_operator.plan.proposer import Proposer, begin_stage
from evomerge_operator.plan.run import default_names, make_run, prepare_task
from evomerge_operator.search import Gene, make_search

FLOW = Flow(divided=["self_attn.o_proj.weight", "mlp.down_proj.weight"], layers={"a": 4, "b": 3})


def flow_stage(space: Mapping[str, Any], algorithm: str = "SepCMA-ES", **search: Any) -> dict[str, Any]:
    return {"name": "dfs", "dataFlowSpace": space, "search": {"algorithm": algorithm, "candidates": 8} | search}


def begun(
    space: Mapping[str, Any],
    algorithm: str = "SepCMA-ES",
    *,
    flow: Flow | None = FLOW,
    layout: Layout = LAYOUT,
    **search: Any,
) -> Proposer:
    manifest = EvoMerge.model_validate(document(stages=[flow_stage(space, algorithm, **search)]))
    found = prepared(manifest, layout.model_copy(update={"flow": flow}))
    return begin_stage(make_run(manifest, found, "file:///reports", default_names(manifest, found)), 0)


def start(proposer: Proposer) -> list[float]:
    return [gene.start for gene in proposer.space.genes]


def path(recipe: Recipe) -> list[str]:
    """Each slice as model:first-last."""
    sources = [source for one in recipe.slices or [] for source in one.sources]
    return [f"{s.model}:{s.layer_range[0]}-{s.layer_range[1] - 1}" for s in sources]


def layers(recipe: Recipe) -> int:
    return sum(s.layer_range[1] - s.layer_range[0] for one in recipe.slices or [] for s in one.sources)


def scales(recipe: Recipe, tensor: str, key: str = "scale") -> list[float | None]:
    """What each slice says of a tensor, None where it says nothing."""
    found = []
    for one in recipe.slices or []:
        setting = (one.sources[0].parameters or {}).get(key)
        value = None if setting is None else value_for(setting, tensor)
        assert value is None or isinstance(value, float)
        found.append(value)
    return found


O_PROJ, DOWN, NORM, HEAD = (
    "model.layers.3.self_attn.o_proj.weight",
    "model.layers.3.mlp.down_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
)


@pytest.mark.parametrize("algorithm", ["GA", "SepCMA-ES", "CMA-ES", "Random"])
@pytest.mark.parametrize("per", ["Slot", "Pair"])
def test_every_search_starts_at_the_donor_as_it_is(algorithm: str, per: str) -> None:
    proposer = begun({"repeats": 2, "scales": {"per": per}}, algorithm)
    recipe = proposer.space.decode(tuple(start(proposer)))
    assert recipe.plain() == {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": "a", "layer_range": [0, 4]}]}],
        "base_model": "a",
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }


def test_slots_are_all_layers_in_order_and_again_and_a_positive_gene_is_in() -> None:
    proposer = begun({"repeats": 2})
    assert [gene.name for gene in proposer.space.genes][3:9] == [
        "slot/3-layer-3-repeat-1/a",
        "slot/4-layer-0-repeat-1/b",
        "slot/5-layer-1-repeat-1/b",
        "slot/6-layer-2-repeat-1/b",
        "slot/7-layer-0-repeat-2/a",
        "slot/8-layer-1-repeat-2/a",
    ]
    genome = [-1.0] * 14
    for slot in (1, 2, 6, 7, 8, 12):
        genome[slot] = 0.000001
    assert path(proposer.space.decode(tuple(genome))) == ["a:0-2", "b:2-2", "a:0-1", "b:1-1", "a:3-3"]
    genome[12] = 0.0
    assert path(proposer.space.decode(tuple(genome))) == ["a:0-2", "b:2-2", "a:0-1", "a:3-3"]


def test_the_first_model_that_is_named_is_the_donor() -> None:
    proposer = begun({"models": ["b", "a"]}, "GA")
    recipe = proposer.space.decode((0, 0, 0, 1, 0, 1, 1))
    assert (recipe.base_model, path(recipe)) == ("b", ["b:0-0", "a:0-0", "a:2-3", "b:2-2"])


def test_the_vocabulary_template_and_config_that_the_manifest_asks_for_are_in_the_recipe() -> None:
    spec = {"tokenizerSource": "b", "chatTemplate": "chatml", "configSource": "b"}
    manifest = EvoMerge.model_validate(document(stages=[flow_stage({})], **spec))
    found = prepared(manifest, LAYOUT.model_copy(update={"flow": FLOW}))
    proposer = begin_stage(make_run(manifest, found, "file:///reports", default_names(manifest, found)), 0)
    recipe = proposer.space.decode(tuple(start(proposer)))
    assert (recipe.tokenizer_source, recipe.chat_template, recipe.config_source) == ("b", "chatml", "b")


def test_branches_are_divided_by_the_product_of_all_scales_so_far_and_nothing_else_is_touched() -> None:
    proposer = begun({"scales": {"min": "0.5", "max": "2"}}, "GA")
    assert [gene.name for gene in proposer.space.genes][6:] == [
        "slot/6-layer-2/b",
        "scale/0-layer-0/a",
        "scale/1-layer-1/a",
        "scale/2-layer-2/a",
        "scale/3-layer-3/a",
        "scale/4-layer-0/b",
        "scale/5-layer-1/b",
        "scale/6-layer-2/b",
        "scale/closing-layer-3/a",
    ]
    slots, hops = (0, 1, 1, 0, 0, 1, 0), (0.6, 0.8, 1.0, 0.6, 0.6, 1.25, 0.6, 2.0)
    recipe = proposer.space.decode((*slots, *hops))
    assert path(recipe) == ["a:0-0", "a:1-2", "b:1-1", "a:3-3"]
    assert scales(recipe, O_PROJ) == scales(recipe, DOWN) == [None, 1 / 0.8, None, 0.5]  # 0.8 * 1.25 is 1 again
    for tensor in (NORM, HEAD, "model.embed_tokens.weight", "model.layers.3.self_attn.q_proj.weight"):
        assert scales(recipe, tensor) == [None, 1.0, None, 1.0]
    assert scales(recipe, O_PROJ, "scale_origin") == [None] * 4


def test_a_pair_of_layers_has_one_scale_wherever_it_occurs() -> None:
    proposer = begun({"repeats": 2, "scales": {"per": "Pair"}})
    genes = proposer.space.genes
    assert len(genes) == 14 + 7 * 7
    assert genes[14].name == "scale/a:0-a:0"
    genome = [-1.0] * 14 + [1.0] * 49
    for slot in (1, 4, 8, 11):
        genome[slot] = 1.0
    number = {gene.name: i for i, gene in enumerate(genes)}
    genome[number["scale/a:1-b:0"]] = 0.5
    genome[number["scale/b:0-a:3"]] = 1.5
    recipe = proposer.space.decode(tuple(genome))
    assert path(recipe) == ["a:0-1", "b:0-0", "a:1-1", "b:0-0", "a:3-3"]
    assert scales(recipe, O_PROJ) == [None, 2.0, 2.0, 4.0, 1 / 0.375]


def test_tensors_that_are_multiplied_and_those_with_an_origin_are_told_apart_by_filters() -> None:
    flow = Flow(
        divided=["post_attention_layernorm.weight"],
        multiplied=["self_attn.q_proj.weight", "mlp.up_proj.weight"],
        about={"post_attention_layernorm.weight": -1.0},
        layers={"a": 4, "b": 3},
    )
    proposer = begun({"scales": {}}, "GA", flow=flow)
    recipe = proposer.space.decode((0,) * 7 + (1.0,) * 7 + (1.25,))
    prefix = "model.layers.7."
    assert path(recipe) == ["a:0-0", "a:3-3"]
    assert scales(recipe, prefix + "post_attention_layernorm.weight") == [None, 0.8]
    assert scales(recipe, prefix + "input_layernorm.weight") == [None, 1.0]
    assert scales(recipe, prefix + "self_attn.q_proj.weight") == [None, 1.25]
    assert scales(recipe, prefix + "mlp.up_proj.weight") == [None, 1.25]
    assert scales(recipe, prefix + "post_attention_layernorm.weight", "scale_origin") == [None, -1.0]
    assert scales(recipe, prefix + "self_attn.q_proj.weight", "scale_origin") == [None, 0.0]
    assert scales(recipe, NORM, "scale_origin") == [None, 0.0]


EXPERTS = [f"block_sparse_moe.experts.{i}.w{w}.weight" for i in range(3) for w in (1, 2, 3)]
NEOX = ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]
LAYOUTS = {
    "experts": (
        Layout(
            layer_prefix="model.layers.",
            layers=4,
            layer_tensors=["self_attn.o_proj.weight", "block_sparse_moe.gate.weight", *EXPERTS],
            before=["model.embed_tokens.weight"],
            after=["lm_head.weight"],
        ),
        ["self_attn.o_proj.weight", "mlp.experts.down_proj"],
    ),
    "names that hold each other": (
        Layout(
            layer_prefix="gpt_neox.layers.",
            layers=4,
            layer_tensors=[f"{module}.{kind}" for module in NEOX for kind in ("weight", "bias")],
            before=["gpt_neox.embed_in.weight"],
            after=["embed_out.weight"],
        ),
        [f"{module}.{kind}" for module in (NEOX[1], NEOX[3]) for kind in ("weight", "bias")],
    ),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_filters_find_what_is_divided_in_any_layer_and_by_either_name(kind: str) -> None:
    layout, divided = LAYOUTS[kind]
    dotted = {f".{tensor}" for tensor in divided}
    proposer = begun({"scales": {}}, "GA", flow=FLOW.model_copy(update={"divided": divided}), layout=layout)
    recipe = proposer.space.decode((0,) * 7 + (1.0,) * 7 + (1.25,))
    for tensor in layout.layer_tensors:
        for name in names(f"{layout.layer_prefix}21.{tensor}"):
            assert scales(recipe, name) == [None, 0.8 if set(names(f".{tensor}")) & dotted else 1.0], name
    for tensor in (*layout.before, *layout.after):
        assert scales(recipe, tensor) == [None, 1.0]


def _normed(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / np.sqrt((x**2).mean())


def _branch(x: NDArray[np.float64], layer: tuple[str, int], factor: float = 1.0) -> NDArray[np.float64]:
    """What a made-up layer adds to the stream: a norm, a map in, a bend, and a map out that `factor` scales."""
    source = np.random.RandomState(sum(layer[0].encode()) * 100 + layer[1])
    inward, outward = source.normal(size=(2, 16, 16))
    return factor * outward @ np.tanh(inward @ _normed(x))


@pytest.mark.parametrize("per", ["Slot", "Pair"])
def test_folded_scales_compute_what_a_scaled_path_does(per: str) -> None:
    proposer = begun({"repeats": 3, "scales": {"per": per, "min": "0.2", "max": "3"}})
    number = {gene.name: i for i, gene in enumerate(proposer.space.genes)}
    for seed in range(20):
        source = Random(seed)
        genome = tuple(_any_value(gene, source) for gene in proposer.space.genes)
        slots = [i for i in range(21) if genome[i] > 0]
        order = [("a", 0), *((("a", i % 7) if i % 7 < 4 else ("b", i % 7 - 4)) for i in slots), ("a", 3)]
        if per == "Slot":
            hops = [genome[21 + i] for i in slots] + [genome[number["scale/closing-layer-3/a"]]]
        else:
            hops = [genome[number[f"scale/{a}:{i}-{b}:{j}"]] for (a, i), (b, j) in pairwise(order)]
        scaled = folded = np.random.RandomState(seed).normal(size=16)
        for layer, hop in zip(order, [1.0, *hops], strict=True):
            scaled = scaled * hop + _branch(scaled * hop, layer)
        recipe = proposer.space.decode(genome)
        for one, factor in zip(recipe.slices or [], scales(recipe, DOWN), strict=True):
            [part] = one.sources
            for layer_number in range(*part.layer_range):
                folded = folded + _branch(folded, (part.model, layer_number), 1.0 if factor is None else factor)
        assert np.abs(_normed(scaled) - _normed(folded)).max() < 1e-12


def test_products_of_scales_stay_within_what_float32_holds() -> None:
    proposer = begun({"repeats": 8, "scales": {"min": "0.05", "max": "8"}})
    for scale in (0.05, 8.0):
        found = scales(proposer.space.decode((1.0,) * 56 + (scale,) * 57), O_PROJ)
        assert all(value is None or 1e-31 < value < 1e31 for value in found)


def test_a_relaxed_genome_beyond_the_depth_loses_its_lowest_slots_and_gains_its_highest() -> None:
    proposer = begun({"layers": {"min": 4, "max": 5}})
    deep, flat = (0.1, 0.5, 0.9, -0.3, 0.9, 0.8, 0.2), (-0.9, -0.5, -0.1, -0.1, -1.0, -0.1, -1.0)
    assert path(proposer.space.decode(deep)) == ["a:0-0", "a:2-2", "b:0-1", "a:3-3"]
    assert path(proposer.space.decode(flat)) == ["a:0-0", "a:2-3", "a:3-3"]  # the earlier of equals


@pytest.mark.parametrize("algorithm", ["GA", "Random"])
def test_binary_genomes_are_repaired_before_anybody_sees_them(algorithm: str) -> None:
    space = {"repeats": 3, "layers": {"min": 4, "max": 6}}
    proposer = begun(space, algorithm, candidates=200, seed=5)
    depths, source = [], Random(1)
    for _ in range(200):
        genome = proposer.search.ask()
        assert set(genome) <= {0.0, 1.0}
        depths.append(2 + int(sum(genome)))
        assert layers(proposer.space.decode(genome)) == depths[-1]
        proposer.search.tell({"sums": source.random() + sum(genome)})
    assert set(depths) == {4, 5, 6}


@pytest.mark.parametrize("algorithm", ["GA", "Random", "SepCMA-ES"])
def test_the_first_candidates_differ_from_the_donor_in_about_two_slots(algorithm: str) -> None:
    flow = FLOW.model_copy(update={"layers": {"a": 32, "b": 32}})
    proposer = begun({"repeats": 3, "scales": {}}, algorithm, flow=flow, lag=300, population=250)
    own = [gene.start > 0 for gene in proposer.space.genes[:192]]
    genomes = [proposer.search.ask() for _ in range(200)]
    flips = [sum((value > 0) != at for value, at in zip(genome, own, strict=False)) for genome in genomes]
    assert 1.7 < sum(flips) / len(flips) < 2.3
    hops = [abs(scale - 1) for genome in genomes for scale in genome[192:]]
    assert 0.01 < sum(hops) / len(hops) < 0.05


@pytest.mark.parametrize("algorithm", ["GA", "SepCMA-ES"])
def test_a_search_on_which_everything_scores_the_same_stays_near_the_donor(algorithm: str) -> None:
    """Anywhere else in the space a path has half of all slots."""
    flow = FLOW.model_copy(update={"layers": {"a": 8, "b": 8}})
    proposer = begun({"repeats": 3}, algorithm, flow=flow, candidates=400, lag=4, population=10)
    own = [gene.start > 0 for gene in proposer.space.genes]
    flips = []
    for _ in range(400):
        genome = proposer.search.ask()
        flips.append(sum((value > 0) != at for value, at in zip(genome, own, strict=True)))
        proposer.search.tell({"sums": 0.0})
    assert max(flips) < 12
    assert sum(flips[300:]) / 100 < 8


@pytest.mark.parametrize("algorithm", ["GA", "SepCMA-ES"])
def test_a_search_finds_a_longer_path_that_is_better(algorithm: str) -> None:
    flow = FLOW.model_copy(update={"layers": {"a": 6, "b": 6}})
    wanted = [0, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0]
    proposer = begun({"repeats": 2}, algorithm, flow=flow, candidates=500, lag=4)

    def right(genome: Genome) -> float:
        return sum((value > 0) == bool(want) for value, want in zip(genome, wanted, strict=True)) / len(wanted)

    found = []
    for _ in range(500):
        genome = proposer.search.ask()
        found.append(right(genome))
        proposer.search.tell({"sums": found[-1]})
    assert right(tuple(start(proposer))) < 0.8
    assert max(found) == 1.0


def test_the_paper_s_space_has_its_4288_genes_and_packs_them_three_bytes_each() -> None:
    flow = FLOW.model_copy(update={"layers": {"a": 32, "b": 32}})
    space = {"repeats": 3, "scales": {"per": "Pair", "min": "0.05", "max": "8"}}
    proposer = begun(space, flow=flow, population=128)
    genomes = [proposer.search.ask() for _ in range(3)]
    assert len(genomes[0]) == 4288
    for genome in (*genomes, tuple(g.low for g in proposer.space.genes), tuple(g.high for g in proposer.space.genes)):
        text = genome_text(genome)
        assert text.startswith("3:")
        assert len(text) == 2 + 4288 * 4
        assert genome_of(text) == genome
    assert proposer.space.summary == (
        "4288 dimensions: 192 slots (64 layers of 2 models, 3 times) and 4096 scales (per Pair); "
        "a candidate has 2 to 194 layers"
    )


def test_what_a_space_says_of_itself() -> None:
    space = begun({"models": ["b"], "repeats": 2, "scales": {}, "layers": {"min": 3, "max": 5}}, "GA").space
    assert space.summary == (
        "13 dimensions: 6 slots (3 layers of 1 model, 2 times) and 7 scales (per Slot); a candidate has 3 to 5 layers"
    )
    assert space.deepest == 5


def test_a_plan_says_the_slots_and_what_the_deepest_candidate_needs() -> None:
    proposer = begun({"repeats": 3, "layers": {"max": 10}}, "GA")
    run = make_run(
        proposer.manifest, proposer.prepared, "file:///reports", default_names(proposer.manifest, proposer.prepared)
    )
    begin_stage(run, 0)
    lines = "\n".join(plan_lines(run, spaces_of(run, proposer), proposer.prepared, 2, 1.0, 1.0))
    assert "stage       dfs: passthrough\n" in lines
    assert "space       21 dimensions: 21 slots (7 layers of 2 models, 3 times); a candidate has 2 to 10 layer" in lines
    assert "memory      about 250 B for the live model of each of 2 workers" in lines  # of 100 bytes in 4 layers


def test_prepare_is_told_which_models_a_stage_lays_in_a_row() -> None:
    named, all_of_them = flow_stage({"models": ["b", "a"]}), flow_stage({})
    tasks = [
        prepare_task(EvoMerge.model_validate(document(stages=[one])), "file:///reports") for one in (named, all_of_them)
    ]
    assert [task.flows for task in tasks] == [[["b", "a"]], [["a", "b"]]]
    assert [(task.methods, task.pool, task.whole) for task in tasks] == [([], ["b", "a"], []), ([], None, [])]
    assert prepare_task(EvoMerge.model_validate(document()), "file:///reports").flows == []


@pytest.mark.parametrize(
    ("space", "depths", "words"),
    [
        ({"repeats": 8}, {"a": 70, "b": 60}, "8 times 130 layers are 1040 slots, more than 1024; choose fewer models"),
        ({}, {"a": 1000, "b": 60}, "1060 layers are 1060 slots, more than 1024; choose fewer models"),
        ({"scales": {"per": "Pair"}}, {"a": 96, "b": 96}, "192 layers make 37056 genes, more than 32768; choose sca"),
        ({"layers": {"min": 12}}, {"a": 4, "b": 3}, "min 12 is deeper than any candidate can be: 7 slots and the"),
        ({"models": ["b"]}, {"a": 4, "b": 1}, "b has one layer; a donor needs one that opens the path and another"),
    ],
)
def test_a_space_that_the_models_do_not_suit_is_refused_in_words(
    space: dict[str, Any], depths: dict[str, int], words: str
) -> None:
    with pytest.raises(InputError) as raised:
        begun(space, flow=FLOW.model_copy(update={"layers": depths}))
    [problem] = raised.value.problems
    assert problem.path == "spec.stages[0].dataFlowSpace"
    assert words in problem.message


def test_full_covariances_of_many_slots_and_binary_genes_for_cma_es_are_refused() -> None:
    with pytest.raises(InputError) as raised:
        begun({"repeats": 8}, "CMA-ES", flow=FLOW.model_copy(update={"layers": {"a": 40, "b": 30}}))
    [problem] = raised.value.problems
    assert problem.path == "spec.stages[0].search"
    assert "CMA-ES in 560 dimensions is refused (at most 512); choose SepCMA-ES" in problem.message
    proposer = begun({}, "GA")
    for algorithm in ("CMA-ES", "SepCMA-ES"):
        search = proposer.stage.search.model_copy(update={"algorithm": algorithm})
        with pytest.raises(ValueError, match=f"{algorithm} takes no binary genes; choose GA or Random"):
            make_search(search, proposer.space.genes, "dfs", proposer.manifest.spec.evaluation.objectives)


def test_a_genome_of_another_length_means_nothing() -> None:
    with pytest.raises(ValueError, match="a genome of 3 genes for a space of 7"):
        begun({}).space.decode((1.0,) * 3)


def test_a_proposer_comes_back_from_its_pickle_with_the_same_recipes() -> None:
    proposer = begun({"repeats": 2, "scales": {}, "layers": {"max": 5}}, "GA")
    [key_start] = [proposer.search.ask()]
    again = pickle.loads(pickle.dumps(proposer))
    assert again.space.decode(key_start) == proposer.space.decode(key_start)
    assert again.search.ask() == proposer.search.ask()


def test_any_genome_decodes_to_a_path_within_its_depth_that_begins_and_ends_with_the_donor() -> None:
    for seed in range(60):
        source = Random(seed)
        depths = {"a": source.randint(2, 9), "b": source.randint(1, 9)}
        low = source.randint(2, 6)
        space = {
            "repeats": source.randint(1, 4),
            "scales": source.choice([None, {"per": "Slot"}, {"per": "Pair"}]),
            "layers": {"min": low, "max": source.randint(low, 20)},
        }
        if low > sum(depths.values()):
            continue
        proposer = begun(space, flow=FLOW.model_copy(update={"layers": depths}))
        genome = tuple(_any_value(gene, source) for gene in proposer.space.genes)
        recipe = proposer.space.decode(genome)
        assert low <= layers(recipe) <= space["layers"]["max"]
        assert (path(recipe)[0][:3], path(recipe)[-1][:2]) == ("a:0", "a:")
        assert recipe.slices is not None
        assert recipe.slices[-1].sources[0].layer_range[1] == depths["a"]
        assert Recipe.model_validate(recipe.plain()) == recipe


def _any_value(gene: Gene, source: Random) -> float:
    return round(source.uniform(gene.low, gene.high), 6)
