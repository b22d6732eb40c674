"""Groups, genes, and the recipe that a genome means."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from documents import LAYOUT, document, prepared, stage
from evomerge_contract.manifest import EvoMerge, EvoMergeSpec, Groups, Parameter
from evomerge_contract.recipe import Filtered, Recipe, Setting
from evomerge_contract.report import Layout
from evomerge_contract.task import Baseline
from evomerge_operator.spaces import Space, baselines, default_baselines, make_space
from evomerge_operator.spaces.groups import group_names, slice_tensors
from evomerge_operator.spaces.parameter_space import sum_to_one
from evomerge_operator.spaces.setting import setting


def first_space(spec: EvoMergeSpec, layout: Layout = LAYOUT) -> Space:
    return make_space(spec.stages[0], [m.name for m in spec.models], spec, layout, "bfloat16")


def space_of(**spec: object) -> Space:
    manifest = EvoMerge.model_validate(document(**spec))
    return first_space(manifest.spec)


def value_for(tensor: str, given_setting: Setting) -> float | bool:
    """What mergekit reads from a setting for a tensor: the first filter that is part of its name."""
    if not isinstance(given_setting, list):
        return given_setting
    for entry in given_setting:
        assert isinstance(entry, Filtered)
        if entry.filter is None or entry.filter in tensor:
            assert not isinstance(entry.value, list)
            return entry.value
    raise AssertionError(f"no filter matches {tensor}")


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        ({"layers": 1}, ["all"]),
        ({"layers": 2}, ["embeddings", "layers-0-1", "layers-2-3", "head"]),
        ({"everyLayer": True}, ["embeddings", "layer-0", "layer-1", "layer-2", "layer-3", "head"]),
        ({"components": True}, ["embeddings", "norms", "mlp", "attention"]),
        ({"patterns": [{"name": "q", "regex": r"q_proj|k_proj"}, {"name": "last", "regex": r"\.3\."}]},
         ["rest", "q", "last"]),
    ],
)  # fmt: skip
def test_groups_are_found_by_tensor_names(groups: dict[str, object], names: list[str]) -> None:
    assert group_names(slice_tensors(Groups.model_validate(groups), LAYOUT)) == names


def test_every_tensor_is_in_exactly_one_slice() -> None:
    tensors = [t for s in slice_tensors(Groups(every_layer=True), LAYOUT) for t in s.group_of]
    assert len(tensors) == len(set(tensors)) == 4 * 9 + 3


def test_more_blocks_than_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="more blocks than the models have layers"):
        slice_tensors(Groups(layers=5), LAYOUT)


def test_blocks_differ_in_size_by_one_layer_at_most() -> None:
    layout = LAYOUT.model_copy(update={"layers": 32})
    for blocks in range(2, 33):
        layers = slice_tensors(Groups(layers=blocks), layout)
        groups = [one.group_of[f"model.layers.{one.layer}.mlp.up_proj.weight"] for one in layers]
        sizes = [groups.count(group) for group in dict.fromkeys(groups)]
        assert len(sizes) == blocks
        assert max(sizes) - min(sizes) <= 1
        assert groups == sorted(groups, key=groups.index)


def test_weights_that_sum_to_one_need_one_gene_less() -> None:
    weight = {"min": "-0.5", "max": "1.5", "sumsToOne": True}
    space = space_of(stages=[stage(groups={"everyLayer": True}, parameters={"weight": weight})])
    assert [g.name for g in space.genes][:2] == ["weight/embeddings/a", "weight/layer-0/a"]
    assert len(space.genes) == 6
    assert {(g.low, g.high, g.start) for g in space.genes} == {(-0.5, 1.5, 0.5)}
    recipe = space.decode((0.25, 0.1, 0.2, 0.3, 0.4, -0.5))
    first, last = recipe.slices[0], recipe.slices[3]  # type: ignore[index]
    weights = [s.parameters["weight"] for s in first.sources]  # type: ignore[index]
    assert [value_for("model.embed_tokens.weight", w) for w in weights] == [0.25, 0.75]
    assert [value_for("model.layers.0.mlp.up_proj.weight", w) for w in weights] == [0.1, 0.9]
    weights = [s.parameters["weight"] for s in last.sources]  # type: ignore[index]
    assert [value_for("lm_head.weight", w) for w in weights] == [-0.5, 1.5]
    assert [value_for("model.norm.weight", w) for w in weights] == [-0.5, 1.5]


def test_a_base_takes_part_in_every_slice_and_fixed_parameters_stand_once() -> None:
    parameters = {
        "weight": {"min": "0", "max": "2"},
        "density": {"min": "0.1", "max": "1"},
        "lambda": {"value": "0.8"},
        "normalize": {"value": "false"},
    }
    space = space_of(base={"uri": "base"}, stages=[stage("dare_ties", parameters=parameters)])
    assert [g.name for g in space.genes] == ["weight/all/a", "weight/all/b", "density/all/a", "density/all/b"]
    recipe = space.decode((1.0, 0.5, 0.9, 0.8))
    assert recipe.parameters == {"lambda": 0.8, "normalize": False}
    assert recipe.base_model == "base"
    for one in recipe.slices or []:
        assert [s.model for s in one.sources] == ["a", "b", "base"]
        assert [s.parameters for s in one.sources] == [
            {"weight": 1.0, "density": 0.9},
            {"weight": 0.5, "density": 0.8},
            None,
        ]


def test_a_shared_parameter_stands_at_the_slice_and_slerp_goes_from_the_first_model() -> None:
    space = space_of(stages=[stage("slerp", {"layers": 4}, {"t": {"min": "0", "max": "1"}})])
    groups = ["embeddings", "layer-0", "layer-1", "layer-2", "layer-3", "head"]
    assert [g.name for g in space.genes] == [f"t/{g}" for g in groups]
    recipe = space.decode((0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
    assert recipe.base_model == "a"
    assert recipe.slices[1].parameters == {"t": 0.3}  # type: ignore[index]


@pytest.mark.parametrize(
    ("method", "parameter", "with_base", "base_model"),
    [
        ("nearswap", "t", True, "a"),
        ("nuslerp", "weight", False, None),
        ("nuslerp", "weight", True, "base"),
        ("sce", "select_topk", True, "base"),
        ("ram", "epsilon", True, "base"),
        ("ramplus_tl", "r", True, "base"),
        ("linear", "weight", True, None),
    ],
)
def test_the_base_is_there_where_it_has_a_part(
    method: str, parameter: str, with_base: bool, base_model: str | None
) -> None:
    base = {"base": {"uri": "base"}} if with_base else {}
    recipe = space_of(stages=[stage(method, parameters={parameter: {"min": "0", "max": "1"}})], **base).decode(
        (0.5,) * (1 if parameter != "weight" else 2)
    )
    assert recipe.base_model == base_model
    models = [source.model for source in recipe.slices[0].sources]  # type: ignore[index]
    assert models == ["a", "b", *(["base"] if base_model == "base" else [])]


def test_a_genome_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a genome of 3 genes for a space of 2"):
        space_of().decode((0.1, 0.2, 0.3))


def test_decoding_is_exact_and_its_digest_tells_genomes_apart() -> None:
    space = space_of()
    recipe = space.decode((0.123456, 1.0))
    assert Recipe.model_validate(recipe.plain()) == recipe
    assert recipe.digest != space.decode((0.123457, 1.0)).digest


@given(st.lists(st.integers(-500_000, 1_500_000), min_size=1, max_size=7))
def test_sums_are_one_and_values_stay_within_bounds(millionths: list[int]) -> None:
    models = [f"m{i}" for i in range(len(millionths) + 1)]
    parameter = Parameter(min="-0.5", max="1.5", sums_to_one=True)
    genes = dict(zip(models, (m / 1e6 for m in millionths), strict=False))
    values = sum_to_one(parameter, models, genes)
    assert round(sum(values.values()), 9) == 1.0
    assert all(-0.5 <= v <= 1.5 for v in values.values())
    if len(models) == 2:
        assert values["m0"] == genes["m0"]


NAMES = [f"model.layers.1.{t}" for t in LAYOUT.layer_tensors] + LAYOUT.before + LAYOUT.after


@given(st.lists(st.sampled_from(["x", "y", "z"]), min_size=len(NAMES), max_size=len(NAMES)))
def test_filters_give_every_tensor_its_groups_value(groups: list[str]) -> None:
    values = {"x": 0.1, "y": 0.2, "z": 0.1}
    group_of = dict(zip(NAMES, groups, strict=True))
    found = setting(group_of, values)
    assert all(value_for(tensor, found) == values[group] for tensor, group in group_of.items())


def default_ones(spec: EvoMergeSpec) -> list[Baseline]:
    return baselines(spec, "bfloat16", default_baselines(spec))


def test_baselines_are_the_sources_their_average_and_with_a_base_two_default_merges_and_the_base() -> None:
    alone = [("a", "source"), ("b", "source"), ("plain average", "average")]
    assert [(b.name, b.role) for b in default_ones(EvoMerge.model_validate(document()).spec)] == alone
    with_base = EvoMerge.model_validate(document(base={"uri": "base"})).spec
    assert [(b.name, b.role) for b in default_ones(with_base)] == [
        *alone,
        ("task arithmetic", "default"),
        ("default DARE-TIES", "default"),
        ("base", "base"),
    ]


def test_the_task_arithmetic_of_the_baselines_adds_every_task_vector_once() -> None:
    spec = EvoMerge.model_validate(document(base={"uri": "base"})).spec
    recipe = default_ones(spec)[3].recipe
    assert (recipe.merge_method, recipe.base_model) == ("task_arithmetic", "base")
    assert [(m.model, m.parameters) for m in recipe.models or []] == [("a", {"weight": 1.0}), ("b", {"weight": 1.0})]


def test_runs_from_before_baselines_were_pinned_have_no_task_arithmetic() -> None:
    spec = EvoMerge.model_validate(document(base={"uri": "base"})).spec
    names = [b.name for b in baselines(spec, "bfloat16", None)]
    assert names == ["a", "b", "plain average", "default DARE-TIES", "base"]


def test_a_list_of_names_chooses_the_baselines() -> None:
    spec = EvoMerge.model_validate(document(base={"uri": "base"})).spec
    every = default_ones(spec)
    assert baselines(spec, "bfloat16", ["base", "b"]) == [every[5], every[1]]
    with pytest.raises(ValueError, match='there is no baseline "best of three"; known: a, b, plain average, task'):
        baselines(spec, "bfloat16", ["best of three"])


def test_a_space_can_be_sent_to_another_process() -> None:
    space = space_of()
    sent = pickle.loads(pickle.dumps(space))
    assert sent.genes == space.genes
    assert sent.decode((0.25, 0.5)) == space.decode((0.25, 0.5))


def test_every_merge_has_the_vocabulary_and_template_of_the_search_and_a_model_alone_its_own() -> None:
    """In mergekit's words, which also say it for a recipe that takes no base_model."""
    spec = EvoMerge.model_validate(document(base={"uri": "base"}, tokenizerSource="union", chatTemplate="auto")).spec
    space = first_space(spec)
    assert space.decode((0.5, 0.5)).tokenizer_source == "union"
    merged = [b.recipe.tokenizer_source for b in default_ones(spec)]
    assert merged == [None, None, "union", "union", "union", None]
    assert space.decode((0.5, 0.5)).chat_template == "auto"
    assert [b.recipe.chat_template for b in default_ones(spec)] == [None, None, "auto", "auto", "auto", None]
    assert not {"tokenizer_source", "chat_template"} & space_of().decode((0.5, 0.5)).plain().keys()


def test_the_space_needs_only_what_prepare_found() -> None:
    manifest = EvoMerge.model_validate(document())
    found = prepared(manifest)
    assert [g.name for g in first_space(manifest.spec, found.layout).genes] == ["weight/all/a", "weight/all/b"]


def test_the_order_of_a_manifests_parameters_has_no_meaning() -> None:
    weight, density = {"min": "0", "max": "2"}, {"min": "0.1", "max": "1"}
    one = space_of(base={"uri": "b"}, stages=[stage("ties", parameters={"weight": weight, "density": density})])
    other = space_of(base={"uri": "b"}, stages=[stage("ties", parameters={"density": density, "weight": weight})])
    assert one.genes == other.genes
    assert one.decode((1.0, 0.5, 0.9, 0.8)).digest == other.decode((1.0, 0.5, 0.9, 0.8)).digest


def test_a_pattern_that_no_tensor_is_left_for_is_refused() -> None:
    patterns = [{"name": "attention", "regex": "self_atn"}]
    with pytest.raises(ValueError, match='pattern attention: no tensor is left that "self_atn" matches'):
        slice_tensors(Groups.model_validate({"patterns": patterns}), LAYOUT)
