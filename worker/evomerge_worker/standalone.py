"""What `evomerge-worker` does beside tasks: merge a recipe by hand, draw a report."""

import sys
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from pydantic import ValidationError

from evomerge_contract.manifest import Storage
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import RunReport
from evomerge_worker.durable import write_durably
from evomerge_worker.errors import InputError, WorkerError


def render(arguments: list[str]) -> int:
    """Draw the report that standard input describes into the file given."""
    from evomerge_worker.report import render as render_html

    facts = RunReport.model_validate_json(sys.stdin.buffer.read())
    write_durably(Path(arguments[0]), render_html(facts).encode())
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
        sys.stderr.write(f"evomerge: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{out}\n")
    return 0


def _merge(recipe_file: Path, out: Path, seed: int) -> None:
    from evomerge_worker.merge import export_checkpoint
    from evomerge_worker.shards import Checkpoint
    from evomerge_worker.store import Store, default_cache

    if out.exists():
        raise InputError.at(str(out), "exists already; choose a folder that does not")
    recipe = read_recipe(recipe_file)
    store = Store(Storage(), default_cache())
    checkpoints = {
        model: Checkpoint.open(store.model(_uri(model, recipe_file.parent)), model) for model in models_of(recipe)
    }
    export_checkpoint(recipe, checkpoints, out, mask_seed=seed, trust_remote_code=False, extra_files={})


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        InputError: it cannot be read, or is no recipe; every mistake with its key.
    """
    from evomerge_contract.report import Problem

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
    """Every model that a recipe names, once."""
    named = [m.model for m in recipe.models or []]
    named += [s.model for part in recipe.slices or [] for s in part.sources]
    return list(dict.fromkeys([*named, *([recipe.base_model] if recipe.base_model else [])]))


def _message(kind: str, text: str) -> str:
    return "is not a key that is supported here" if kind == "extra_forbidden" else text


def _uri(model: str, folder: Path) -> str:
    """A recipe's model as a URI: as it is, a folder relative to the recipe, or a pinned hub model."""
    if urlsplit(model).scheme in ("s3", "hf", "file"):
        return model
    if (folder / model).exists() or "@" not in model:
        return (folder / model).resolve().as_uri()
    return f"hf://{model}"
