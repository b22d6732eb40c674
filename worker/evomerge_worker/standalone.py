"""What `evomerge-worker` does beside tasks: merge a recipe by hand, draw a report."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import yaml
from pydantic import ValidationError

from evomerge_contract.manifest import Storage
from evomerge_contract.recipe import BASE_TOKENIZER, UNION, Recipe
from evomerge_contract.report import Problem, RunReport
from evomerge_contract.task import Source
from evomerge_worker.durable import write_durably
from evomerge_worker.errors import InputError, WorkerError, where_of

if TYPE_CHECKING:
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
    from evomerge_worker.merge.vocabulary import Vocabularies
    from evomerge_worker.prepare.fit import check_fit
    from evomerge_worker.prepare.mistakes import Mistakes
    from evomerge_worker.prepare.sources import check_finite, open_source
    from evomerge_worker.store import Store, default_cache

    models, store, mistakes = models_of(recipe), Store(Storage(), default_cache()), Mistakes()
    mistakes.found += [Problem(path=path, message=message) for path, message in spoken_mistakes(recipe, set(models))]
    opened = [open_source(Source(name=model, uri=_uri(model, folder)), store, mistakes, code=False) for model in models]
    check_fit(opened, mistakes, vocabulary=recipe.vocabulary)
    checkpoints = {source.name: source.checkpoint for source in opened if source.checkpoint is not None}
    if len(checkpoints) == len(models):
        with mistakes.collected():
            Vocabularies().aligned(recipe, checkpoints)
    for checkpoint in checkpoints.values():
        with mistakes.collected():
            check_finite(checkpoint)
    names = {where_of(model): model for model in models}
    mistakes.found = [p.model_copy(update={"path": names.get(p.path, p.path)}) for p in mistakes.found]
    mistakes.raise_any(order=models)
    return checkpoints


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        InputError: it cannot be read, or is no recipe; every mistake with its key.
    """
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError.at(str(path), f"cannot be read as YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        problems = [
            Problem(path=".".join(str(part) for part in e["loc"]) or "recipe", message=_message(e["type"], e["msg"]))
            for e in error.errors(include_url=False)
        ]
        raise InputError(*problems) from error


def models_of(recipe: Recipe) -> list[str]:
    """Every model that a recipe names, once; the one whose vocabulary the result has is a model too."""
    named = [m.model for m in recipe.models or []]
    named += [s.model for part in recipe.slices or [] for s in part.sources]
    named += [recipe.base_model] if recipe.base_model else []
    named += [recipe.vocabulary] if recipe.vocabulary not in (None, UNION, BASE_TOKENIZER) else []
    return list(dict.fromkeys(named))


def _message(kind: str, text: str) -> str:
    return {"extra_forbidden": "is not a key that is supported here", "missing": "is missing"}.get(kind, text)


def _uri(model: str, folder: Path) -> str:
    """A recipe's model as a URI: as it is, a folder relative to the recipe, or a pinned hub model."""
    if urlsplit(model).scheme in ("s3", "hf", "file"):
        return model
    if (folder / model).exists() or "@" not in model:
        return (folder / model).resolve().as_uri()
    return f"hf://{model}"
