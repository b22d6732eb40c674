"""What `evomerge-worker` does beside tasks: merge a recipe by hand, draw a report."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from evomerge_contract.manifest import Storage
from evomerge_contract.recipe import BASE_TOKENIZER, Recipe
from evomerge_contract.report import Problem, RunReport
from evomerge_contract.task import Source
from evomerge_worker.durable import write_durably
from evomerge_worker.errors import InputError, WorkerError, where_of
from evomerge_worker.recipe_file import read_recipe

if TYPE_CHECKING:
    from evomerge_worker.prepare.mistakes import Mistakes
    from evomerge_worker.prepare.sources import Opened
    from evomerge_worker.shards import Checkpoint


def render(arguments: list[str]) -> int:
    """Draw the report that standard input describes into the file given."""
    from evomerge_worker.report import render as render_html

    facts = RunReport.model_validate_json(sys.stdin.buffer.read())
    try:
        write_durably(Path(arguments[0]), render_html(facts).encode())
    except WorkerError as error:
        return _told(error)
    return 0


def merge(arguments: list[str]) -> int:
    """Merge the recipe file into the folder; messages on standard error, the exit code of the worker."""
    recipe_file, out, seed = Path(arguments[0]), Path(arguments[1]), int(arguments[2]) if arguments[2:] else 0
    try:
        _merge(recipe_file, out, seed)
    except InputError as error:
        count = len(error.problems)
        sys.stderr.write(f"{recipe_file}: {count} mistake{'s' if count > 1 else ''}\n")
        sys.stderr.writelines(f"  {p.path}   {p.message}\n" for p in error.problems)
        return error.exit_code
    except WorkerError as error:
        return _told(error)
    sys.stdout.write(f"{out}\n")
    return 0


def _told(error: WorkerError) -> int:
    sys.stderr.write(f"evomerge: {error}\n")
    return error.exit_code


def _merge(recipe_file: Path, out: Path, seed: int) -> None:
    from evomerge_worker.merge import anchor_of, export_checkpoint

    if out.exists():
        raise InputError.at(str(out), "exists already; choose a folder that does not")
    recipe = read_recipe(recipe_file)
    if recipe.vocabulary == BASE_TOKENIZER and (recipe.models or recipe.slices):
        recipe = recipe.with_vocabulary(anchor_of(recipe))  # never a folder that happens to be called base
    checkpoints = _sources(recipe, recipe_file.parent)
    export_checkpoint(recipe, checkpoints, out, mask_seed=seed, trust_remote_code=False, extra_files={})


def _sources(recipe: Recipe, folder: Path) -> dict[str, "Checkpoint"]:
    """The models of a recipe that lies in `folder`, by the names it uses, checked as a prepare task checks them.

    Raises:
        InputError: all that is wrong with the recipe's words, the models and how they fit, by the recipe's names.
    """
    from evomerge_worker.merge.slices import spoken_mistakes
    from evomerge_worker.prepare.fit import check_fit
    from evomerge_worker.prepare.mistakes import Mistakes
    from evomerge_worker.prepare.sources import check_finite, open_source
    from evomerge_worker.store import Store, default_cache

    models, store, mistakes = recipe.named_models, Store(Storage(), default_cache()), Mistakes()
    mistakes.found += [Problem(path=path, message=message) for path, message in spoken_mistakes(recipe, set(models))]
    spoken, first = bool(mistakes.found), recipe.base_model or next(iter(models), None)
    opened = [open_source(_source(model, folder), store, mistakes, code=False) for model in models]
    checkpoints = {source.name: source.checkpoint for source in opened if source.checkpoint is not None}
    check_fit(
        sorted(opened, key=lambda source: source.name != first),
        mistakes,
        whole=not recipe.slices,
        vocabulary=recipe.vocabulary,
    )
    if not spoken:
        _check_recipe(recipe, opened, mistakes)
    for checkpoint in checkpoints.values():
        with mistakes.collected():
            check_finite(checkpoint)
    names = {where_of(model): model for model in models}
    mistakes.found = [p.model_copy(update={"path": names.get(p.path, p.path)}) for p in mistakes.found]
    mistakes.raise_any(order=models)
    return checkpoints


def _check_recipe(recipe: Recipe, opened: list["Opened"], mistakes: "Mistakes") -> None:
    """Collect what keeps a recipe from being carried out over the models that it names, as far as they are known."""
    from evomerge_worker.merge.plan import plan_merge
    from evomerge_worker.merge.slices import counted_mistakes, sliced
    from evomerge_worker.merge.vocabulary import Vocabularies

    layers = {source.name: source.layers for source in opened if source.layers is not None}
    if len(layers) < len(opened):
        return
    counted = [Problem(path=p, message=m) for p, m in counted_mistakes(recipe, sliced(recipe, layers), layers)]
    mistakes.found += counted
    checkpoints = {source.name: source.checkpoint for source in opened if source.checkpoint is not None}
    readable = recipe.vocabulary is None or all(source.vocabulary is not None for source in opened)
    if not counted and readable and len(checkpoints) == len(opened):
        with mistakes.collected():
            plan_merge(recipe, Vocabularies().aligned(recipe, checkpoints))


def _source(model: str, folder: Path) -> Source:
    """What a recipe that lies in `folder` means by `model`: a model, or one with a LoRA adapter, model+adapter."""
    whole, plus, adapter = model.rpartition("+")
    if not plus or (folder / model).exists():
        return Source(name=model, uri=_uri(model, folder))
    return Source(name=model, uri=_uri(whole, folder), adapter=_uri(adapter, folder))


def _uri(model: str, folder: Path) -> str:
    """A recipe's model as a URI: as it is, a folder relative to the recipe, or a pinned hub model."""
    if urlsplit(model).scheme in ("s3", "hf", "file"):
        return model
    if (folder / model).exists() or "@" not in model:
        return (folder / model).resolve().as_uri()
    return f"hf://{model}"
