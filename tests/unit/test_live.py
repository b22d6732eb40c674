"""Merging into a live model gives what `from_pretrained` gives for the exported result."""

import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from evomerge_contract.recipe import Recipe
from evomerge_worker.errors import CandidateError, InputError
from evomerge_worker.families import LiveModel
from evomerge_worker.families.loading import load_state
from evomerge_worker.merge import export_checkpoint, run
from evomerge_worker.shards import Checkpoint
from method_inputs import on_threads
from tiny_models import Tiny, write_tensors
from vocabularies import OF_A, OF_B, OF_BASE

CPU = torch.device("cpu")


def _sources(tiny: Tiny, family: str, **options: Any) -> dict[str, Checkpoint]:
    return {
        name: Checkpoint.open(tiny(family, seed=seed, **options), name)
        for name, seed in (("a", 1), ("b", 2), ("base", 0))
    }


def _ties(**keys: Any) -> Recipe:
    """Every tensor gets parameters of its own: gradients over the layers, filters outside them."""
    weight = [{"filter": "embed", "value": 0.1}, {"filter": "norm", "value": 0.9}, {"value": [0.2, 1.0]}]
    models = [
        {"model": "a", "parameters": {"weight": 0.7, "density": [0.3, 0.9]}},
        {"model": "b", "parameters": {"weight": weight, "density": 0.5}},
    ]
    return Recipe.model_validate({"merge_method": "ties", "base_model": "base", "models": models, **keys})


def _linear(*models: str, **keys: Any) -> Recipe:
    named = [{"model": model, "parameters": {"weight": 1 + i}} for i, model in enumerate(models)]
    return Recipe.model_validate({"merge_method": "linear", "models": named, **keys})


def _assert_same(live: LiveModel, recipe: Recipe, sources: dict[str, Checkpoint], folder: Path) -> None:
    """Parameter for parameter and buffer for buffer, values and dtypes, and the same ones tied."""
    from transformers import AutoModelForCausalLM

    export_checkpoint(recipe, sources, folder, mask_seed=3)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ours, theirs = _tensors(live.model), _tensors(loaded)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
    assert len({t.data_ptr() for t in ours.values()}) == len({t.data_ptr() for t in theirs.values()})
    assert live.model.generation_config.to_dict() == loaded.generation_config.to_dict()
    assert not live.model.training


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    """Parameters and buffers by all their names, buffers that are not saved included."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


@pytest.mark.parametrize(
    "family",
    ["llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt_neox", "gpt2", "phi3", "mixtral",
     "deepseek_v3"],
)  # fmt: skip
def test_a_live_merge_equals_the_loaded_export(tiny: Tiny, tmp_path: Path, family: str) -> None:
    """Twice in a row, so that nothing of the first merge is left over."""
    sources = _sources(tiny, family)
    live = LiveModel.open(sources["base"], device=CPU)
    live.merge(_linear("a", "b", base_model="base", parameters={"weight": 0.5}), sources, 3)
    live.merge(_ties(), sources, 3)
    _assert_same(live, _ties(), sources, tmp_path / "out")


@pytest.mark.parametrize(
    "family", ["llama", "llama-tied", "llama-tied with its head", "gpt_neox", "gpt2", "mixtral", "deepseek_v3"]
)
def test_an_ordinary_model_is_merged_in_place(tiny: Tiny, tmp_path: Path, family: str) -> None:
    """The modules stay the same objects, so no candidate pays for building a model; fused experts are so many parts."""
    sources = _sources(tiny, family.removesuffix(" with its head"))
    if family.endswith(" with its head"):
        sources = {name: _with_its_head(checkpoint, tmp_path / name) for name, checkpoint in sources.items()}
    live = LiveModel.open(sources["base"], device=CPU)
    model, places = live.model, {n: t.data_ptr() for n, t in _tensors(live.model).items()}
    live.merge(_ties(), sources, 3)
    assert live.model is model
    assert {n: t.data_ptr() for n, t in _tensors(live.model).items()} == places


@pytest.mark.parametrize("method", ["ties", "nuslerp"])
def test_threads_merge_a_model_as_one_does(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """nuslerp has no compiled loop: all of it is done while others decide."""
    monkeypatch.setattr(run, "_WORTH_THREADS", 1)
    sources = _sources(tiny, "llama")
    recipe = _ties() if method == "ties" else _linear("a", "b", merge_method=method)
    live = LiveModel.open(sources["a"], device=CPU)
    with on_threads(3):
        live.merge(recipe, sources, 3)
    _assert_same(live, recipe, sources, tmp_path / "out")


def test_the_first_tensor_that_is_not_finite_is_told_however_many_threads_there_are(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_WORTH_THREADS", 1)
    sources = _sources(tiny, "llama")
    live = LiveModel.open(sources["a"], device=CPU)
    models = [{"model": model, "parameters": {"weight": 3e40}} for model in ("a", "b")]
    huge = Recipe.model_validate({"merge_method": "linear", "models": models, "parameters": {"normalize": False}})
    told = set()
    for threads in (1, 3):
        with on_threads(threads), pytest.raises(CandidateError, match="holds NaN or infinity") as failure:
            live.merge(huge, sources, 3)
        told.add(str(failure.value))
    assert len(told) == 1


def test_weights_lie_aligned_in_memory_that_is_no_files(tiny: Tiny) -> None:
    source = _sources(tiny, "llama")["base"]
    live = LiveModel.open(source, device=CPU)
    weights = [tensor for tensor in _tensors(live.model).values() if tensor.numel()]
    assert not any(tensor.data_ptr() % 64 for tensor in weights)
    source.tensor(source.names[0])
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if ".safetensors" in line]
    assert lines, "the source is mapped"
    spans = [[int(address, 16) for address in line.split()[0].split("-")] for line in lines]
    assert not any(start <= tensor.data_ptr() < end for tensor in weights for start, end in spans)


def test_experts_that_cannot_be_told_apart_are_loaded_as_transformers_does(tiny: Tiny, tmp_path: Path) -> None:
    """Models made of a dense one begin with copies of its feed-forward layer."""
    sources = _sources(tiny, "mixtral")
    folder = Path(shutil.copytree(sources["base"].folder, tmp_path / "base"))
    tensors = load_file(folder / "model.safetensors")
    copies = {name: tensors[name.replace("experts.1", "experts.0")].clone() for name in tensors if "experts.1" in name}
    write_tensors(folder, tensors | copies, config=sources["base"].config)
    sources["base"] = Checkpoint.open(folder, "base")
    live = LiveModel.open(sources["base"], device=CPU)
    for recipe in (_linear("a", "b", base_model="base", parameters={"weight": 0.5}), _ties()):
        live.merge(recipe, sources, 3)
        _assert_same(live, recipe, sources, tmp_path / recipe.merge_method)


def _moved(**keys: Any) -> Recipe:
    slices = [{"sources": [{"model": n, "layer_range": r}]} for n, r in (("a", [0, 3]), ("b", [1, 4]))]
    settings = {"merge_method": "linear", "slices": slices, "parameters": {"weight": 1}}
    return Recipe.model_validate(settings | keys)


def test_a_model_is_gone_before_the_next_one_is_merged(tiny: Tiny, tmp_path: Path) -> None:
    """Two of them need not fit into memory; one whose merge fails leaves nothing, and hinders no other."""
    sources = _sources(tiny, "mixtral")
    live = LiveModel.open(sources["base"], device=CPU)
    for recipe in (_moved(), _linear("a", "b", base_model="base", parameters={"weight": 0.5})):
        before = weakref.ref(live.model)
        with pytest.raises(CandidateError):
            live.merge(_moved(parameters={"weight": 1e39, "normalize": False}), sources, 3)
        assert before() is None
        live.merge(recipe, sources, 3)
        _assert_same(live, recipe, sources, tmp_path / ("moved" if recipe.slices else "whole"))


def test_tensors_are_let_go_as_they_are_loaded(tiny: Tiny) -> None:
    """What is fused, and so copied, is not in memory twice."""
    source = _sources(tiny, "mixtral")["a"]
    model = LiveModel.open(source, device=CPU).model
    state = {name: source.tensor(name).clone() for name in source.names}
    expert = weakref.ref(next(tensor for name, tensor in state.items() if ".experts." in name))
    again = load_state(type(model), state, model.config, dtype=torch.bfloat16, device=CPU)
    assert not state
    assert expert() is None
    assert all(torch.equal(tensor, _tensors(again)[name]) for name, tensor in _tensors(model).items())


def test_merging_leaves_the_sources_on_disk_alone(tiny: Tiny) -> None:
    sources = _sources(tiny, "llama")
    before = {c.folder: (c.folder / "model.safetensors").read_bytes() for c in sources.values()}
    live = LiveModel.open(sources["base"], device=CPU)
    live.merge(_ties(), sources, 3)
    assert all((folder / "model.safetensors").read_bytes() == content for folder, content in before.items())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_output_dtype_gives_a_model_of_that_dtype(tiny: Tiny, tmp_path: Path, dtype: str) -> None:
    sources = _sources(tiny, "llama")
    recipe = _ties(dtype="float32", out_dtype=dtype)
    live = LiveModel.open(sources["base"], device=CPU)
    live.merge(recipe, sources, 3)
    assert live.model.dtype == getattr(torch, dtype)
    _assert_same(live, recipe, sources, tmp_path / "out")


def test_sources_in_several_dtypes_give_the_wider_one(tiny: Tiny, tmp_path: Path) -> None:
    sources = _sources(tiny, "llama") | {"b": Checkpoint.open(tiny("llama", seed=2, dtype="float32"), "b")}
    live = LiveModel.open(sources["a"], device=CPU)
    live.merge(_linear("a", "b"), sources, 3)
    assert live.model.dtype == torch.float32
    _assert_same(live, _linear("a", "b"), sources, tmp_path / "out")


def _with_its_head(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """A tied model whose checkpoint holds a copy of the embeddings as the head."""
    shutil.copytree(checkpoint.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    write_tensors(folder, tensors, config=checkpoint.config)
    return Checkpoint.open(folder, checkpoint.name)


def test_a_tied_head_that_lies_on_disk_too_stays_tied(tiny: Tiny, tmp_path: Path) -> None:
    """Merged by itself, with other masks or weights, it would differ from the embeddings, and be untied on loading."""
    without = _sources(tiny, "llama-tied")
    sources = {name: _with_its_head(checkpoint, tmp_path / name) for name, checkpoint in without.items()}
    live = LiveModel.open(sources["base"], device=CPU)
    for recipe in (_ties(), _linear("a", "b"), _ties().model_copy(update={"merge_method": "dare_ties"})):
        live.merge(recipe, sources, 3)
        out = tmp_path / recipe.merge_method
        _assert_same(live, recipe, sources, out)
        assert live.model.lm_head.weight is live.model.model.embed_tokens.weight
        export_checkpoint(recipe, without, tmp_path / f"{out.name}-without", mask_seed=3)
        weights = [load_file(folder / "model.safetensors") for folder in (out, tmp_path / f"{out.name}-without")]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_head_of_its_own_in_one_source_is_merged(tiny: Tiny, tmp_path: Path) -> None:
    """Whatever the config says of it; the others' copies of the embeddings then count as their heads."""
    sources = {n: _with_its_head(c, tmp_path / n) for n, c in _sources(tiny, "llama-tied").items()}
    tensors = load_file(sources["b"].folder / "model.safetensors")
    tensors["lm_head.weight"] += 1
    sources["b"] = Checkpoint.open(write_tensors(tmp_path / "own", tensors, config=sources["b"].config), "b")
    live = LiveModel.open(sources["a"], device=CPU)
    live.merge(_linear("a", "b"), sources, 3)
    _assert_same(live, _linear("a", "b"), sources, tmp_path / "out")
    assert not torch.equal(live.model.lm_head.weight, live.model.model.embed_tokens.weight)


def test_a_tied_head_that_only_some_sources_hold_changes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    """Whichever model comes first, and whatever was merged before."""
    sources = _sources(tiny, "llama-tied")
    sources["a"] = _with_its_head(sources["a"], tmp_path / "a")
    live = LiveModel.open(sources["b"], device=CPU)
    for i, models in enumerate((["b", "a"], ["a"], ["a", "b"], ["b"], ["b", "a"])):
        live.merge(_linear(*models), sources, 3)
        _assert_same(live, _linear(*models), sources, tmp_path / f"out{i}")


def test_tensors_that_the_architecture_does_not_know_are_passed_over(tiny: Tiny, tmp_path: Path) -> None:
    """Old checkpoints hold rotary tables that are computed nowadays."""
    sources = {}
    for name, checkpoint in _sources(tiny, "llama").items():
        folder = tmp_path / name
        shutil.copytree(checkpoint.folder, folder)
        tensors = load_file(folder / "model.safetensors")
        tensors |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(4)}
        write_tensors(folder, tensors, config=checkpoint.config)
        sources[name] = Checkpoint.open(folder, name)
    live = LiveModel.open(sources["base"], device=CPU)
    model = live.model
    live.merge(_ties(), sources, 3)
    assert live.model is model
    _assert_same(live, _ties(), sources, tmp_path / "out")


def test_a_result_with_another_config_or_tokenizer_is_opened_anew(tiny: Tiny, tmp_path: Path) -> None:
    """A baseline that is one model alone takes that model's own config and chat template."""
    sources = {
        "a": Checkpoint.open(tiny("llama", seed=1), "a"),
        "b": Checkpoint.open(tiny("llama", seed=2, chat_template=True, rms_norm_eps=1e-3), "b"),
    }
    live = LiveModel.open(sources["a"], device=CPU)
    live.merge(_linear("b"), sources, 3)
    assert live.tokenizer.chat_template is not None
    assert live.model.config.rms_norm_eps == 1e-3
    _assert_same(live, _linear("b"), sources, tmp_path / "b")
    live.merge(_linear("a", "b"), sources, 3)
    assert live.tokenizer.chat_template is None
    _assert_same(live, _linear("a", "b"), sources, tmp_path / "a")


def _of_other_tokens(tiny: Tiny, family: str, **options: Any) -> dict[str, Checkpoint]:
    vocabularies = {"base": OF_BASE, "a": OF_A, "b": OF_B}
    return {
        name: Checkpoint.open(tiny(family, seed=seed, vocabulary=vocabulary, **options), name)
        for seed, (name, vocabulary) in enumerate(vocabularies.items())
    }


def _assert_same_answers(live: LiveModel, folder: Path) -> None:
    """Tokens, logits and generated text, bit for bit."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert live.tokenizer.get_vocab() == tokenizer.get_vocab()
    ours, theirs = (t("1é+<tool>ß 2=", return_tensors="pt") for t in (live.tokenizer, tokenizer))
    assert torch.equal(ours.input_ids, theirs.input_ids)
    assert torch.equal(live.model(**ours).logits, model(**theirs).logits)
    assert torch.equal(live.model.generate(**ours, max_new_tokens=8), model.generate(**theirs, max_new_tokens=8))


@pytest.mark.parametrize(
    ("family", "source"),
    [("llama", "union"), ("llama", "base"), ("llama", "a"), ("llama-tied", "union"), ("gpt2", "union"),
     ("gemma2", "a"), ("mixtral", "union")],
)  # fmt: skip
def test_another_vocabulary_in_memory_is_the_one_on_disk(tiny: Tiny, tmp_path: Path, family: str, source: str) -> None:
    sources = _of_other_tokens(tiny, family)
    live = LiveModel(CPU, trust_remote_code=False)
    for i, recipe in enumerate([_linear("b", "a", "base", tokenizer_source=source), _ties(tokenizer_source=source)]):
        live.open_for(recipe, sources)
        live.merge(recipe, sources, 3)
        _assert_same(live, recipe, sources, tmp_path / f"out{i}")
        _assert_same_answers(live, tmp_path / f"out{i}")


def test_a_search_over_other_vocabularies_merges_in_place(tiny: Tiny) -> None:
    sources = _of_other_tokens(tiny, "llama")
    live = LiveModel(CPU, trust_remote_code=False)
    live.merge(_ties(tokenizer_source="union"), sources, 3)
    model, tokenizer = live.model, live.tokenizer
    live.merge(_ties(tokenizer_source="union", parameters={"lambda": 0.5}), sources, 3)
    assert live.model is model
    assert live.tokenizer is tokenizer


def test_vocabularies_may_change_from_recipe_to_recipe(tiny: Tiny, tmp_path: Path) -> None:
    """As they do in a conclusion: a source alone keeps its own."""
    sources = _of_other_tokens(tiny, "llama")
    live = LiveModel.open(sources["a"], device=CPU)
    for i, recipe in enumerate([_ties(tokenizer_source="union"), _linear("b"), _ties(tokenizer_source="a")]):
        live.merge(recipe, sources, 3)
        _assert_same(live, recipe, sources, tmp_path / f"out{i}")
        _assert_same_answers(live, tmp_path / f"out{i}")


def test_sources_of_another_vocabulary_are_left_alone(tiny: Tiny) -> None:
    """Rows that need no change are views of the files, and must not become the model's own."""
    sources = _of_other_tokens(tiny, "llama")
    before = {c: {name: c.tensor(name).clone() for name in c.names} for c in sources.values()}
    live = LiveModel(CPU, trust_remote_code=False)
    for source in ("base", "union"):
        live.merge(_ties(tokenizer_source=source), sources, 3)
    assert all(torch.equal(c.tensor(name), tensor) for c, kept in before.items() for name, tensor in kept.items())


def test_padding_that_differs_is_the_same_in_memory_and_on_disk(tiny: Tiny, tmp_path: Path) -> None:
    sources = _sources(tiny, "llama") | {"base": Checkpoint.open(tiny("llama", vocab_size=128), "base")}
    live = LiveModel(CPU, trust_remote_code=False)
    for i, recipe in enumerate([_linear("a", "base"), _ties()]):
        live.merge(recipe, sources, 3)
        _assert_same(live, recipe, sources, tmp_path / f"out{i}")


def test_weights_that_are_not_finite_fail_the_candidate_and_not_the_next(tiny: Tiny, tmp_path: Path) -> None:
    sources = _sources(tiny, "llama")
    recipe = _linear("a", "b", out_dtype="float16", parameters={"normalize": False}).model_dump()
    recipe["models"][0]["parameters"]["weight"] = 999_999
    live = LiveModel.open(sources["a"], device=CPU)
    with pytest.raises(CandidateError, match="holds NaN or infinity") as caught:
        live.merge(Recipe.model_validate(recipe), sources, 3)
    assert caught.value.reason == "NotFinite"
    live.merge(_linear("a", "b"), sources, 3)
    _assert_same(live, _linear("a", "b"), sources, tmp_path / "out")


def test_a_model_that_lacks_weights_of_its_architecture_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    """transformers would make them up."""
    folder = tmp_path / "headless"
    shutil.copytree(tiny("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    write_tensors(folder, tensors, config=Checkpoint.open(folder, "x").config)
    with pytest.raises(InputError, match=r"models\.x: it lacks tensor lm_head\.weight, which its architecture"):
        LiveModel.open(Checkpoint.open(folder, "x"), device=CPU)


def test_an_unknown_architecture_is_refused_and_its_code_is_not_run(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "custom"
    shutil.copytree(tiny("llama"), folder)
    (folder / "modeling_custom.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = {
        "model_type": "custom",
        "architectures": ["Custom"],
        "auto_map": {"AutoConfig": "modeling_custom.Config", "AutoModelForCausalLM": "modeling_custom.Custom"},
    }
    write_tensors(folder, load_file(folder / "model.safetensors"), config=config)
    with pytest.raises(InputError, match=r"models\.x: transformers cannot load it"):
        LiveModel.open(Checkpoint.open(folder, "x"), device=CPU)
    assert not (tmp_path / "ran").exists()


CUSTOM_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class Config(LlamaConfig):
    model_type = "custom"

class Custom(LlamaForCausalLM):
    config_class = Config
"""


@pytest.mark.parametrize("keys", [{}, {"tokenizer_source": "union"}])
def test_a_models_own_code_runs_when_it_is_trusted(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str]
) -> None:
    """And goes with the export, which then loads in the same way."""
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    sources = {}
    for name, checkpoint in (_of_other_tokens if keys else _sources)(tiny, "llama").items():
        folder = tmp_path / name
        shutil.copytree(checkpoint.folder, folder)
        (folder / "modeling_custom.py").write_text(CUSTOM_CODE)
        code = {"AutoConfig": "modeling_custom.Config", "AutoModelForCausalLM": "modeling_custom.Custom"}
        config = checkpoint.config | {"model_type": "custom", "architectures": ["Custom"], "auto_map": code}
        write_tensors(folder, load_file(folder / "model.safetensors"), config=config)
        sources[name] = Checkpoint.open(folder, name)
    live = LiveModel.open(sources["base"], device=CPU, trust_remote_code=True)
    live.merge(_ties(**keys), sources, 3)
    assert type(live.model).__name__ == "Custom"
    export_checkpoint(_ties(**keys), sources, tmp_path / "out", mask_seed=3, trust_remote_code=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    theirs = _tensors(loaded)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in _tensors(live.model).items())


def test_bert_is_merged_to_disk(tiny: Tiny, tmp_path: Path) -> None:
    """It is no causal model; its merged checkpoint loads as what it is, every weight in place."""
    from transformers import AutoModelForMaskedLM

    sources = _sources(tiny, "bert")
    export_checkpoint(_ties(), sources, tmp_path / "out", mask_seed=3)
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    out, state = Checkpoint.open(tmp_path / "out", "out"), model.state_dict()
    assert all(torch.equal(state[name], out.tensor(name)) for name in out.names)
