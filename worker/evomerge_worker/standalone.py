"""What `evomerge-worker` does beside tasks: merge a recipe by hand, draw a report."""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from evomerge_contract.manifest import Storage
from evomerge_contract.problems import in_rows, in_words
from evomerge_contract.recipe import BASE_TOKENIZER, UNION, Recipe
from evomerge_contract.report import Problem, RunReport
from evomerge_contract.task import Source
from evomerge_worker.durable import write_durably
from evomerge_worker.errors import InputError, StorageError, WorkerError, where_of
from evomerge_worker.recipe_file import Part, read_recipes
from evomerge_worker.recipe_models import named_in_recipe, source_of
from evomerge_worker.recipe_parts import in_order, used

if TYPE_CHECKING:
    from evomerge_worker.prepare.mistakes import Mistakes
    from evomerge_worker.prepare.sources import Opened
    from evomerge_worker.shards import Checkpoint
    from evomerge_worker.store import Store


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
        sys.stderr.write(in_rows(str(recipe_file), error.problems))
        return error.exit_code
    except WorkerError as error:
        return _told(error)
    sys.stdout.write(f"{out}\n")
    return 0


def _told(error: WorkerError) -> int:
    sys.stderr.write(f"evomerge: {error}\n")
    return error.exit_code


def _merge(recipe_file: Path, out: Path, seed: int) -> None:
    _check_new(out)
    written = read_recipes(recipe_file)
    parts = in_order(written)
    unused = [part for part in written if part not in parts]
    for part in parts:
        sys.stderr.writelines(f"{recipe_file}: {warning.path} {warning.message}\n" for warning in part.written.warnings)
    if any(part.written.recipe is None for part in parts) or any(part.written.problems for part in unused):
        raise InputError(*(problem for part in written for problem in part.written.problems))
    for part in unused:
        sys.stderr.write(f"{recipe_file}: {part.name} is used by no other recipe, and is not merged\n")
    if len(parts) == 1:
        _merge_part(parts[0], recipe_file.parent, {}, out, seed)
        return
    _check_parts(parts, recipe_file.parent)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".parts", dir=out.parent) as beside:
        made: dict[str, Path] = {}
        for part in parts:
            sys.stderr.write(f"merging {part.name or 'the last'}\n")
            _merge_part(part, recipe_file.parent, made, out if part.name is None else Path(beside) / part.name, seed)
            if part.name is not None:
                made[part.name] = Path(beside) / part.name


def _check_parts(parts: list[Part], folder: Path) -> None:
    """Find what is wrong with recipes and with models that are there already, before anything is merged.

    Raises:
        InputError, StorageError: with all of it.
    """
    from evomerge_worker.prepare.mistakes import Mistakes

    mistakes = Mistakes()
    recipes = {part.name: cast(Recipe, part.written.recipe) for part in parts}
    using = {name: used(recipe, recipes) for name, recipe in recipes.items()}
    for part in parts:
        mistakes.found += part.written.problems
        if using[part.name]:
            _pinned(recipes[part.name], folder, dict.fromkeys(using[part.name], folder), mistakes)
    for part in parts:
        if not using[part.name]:
            _checked(part, folder, {}, mistakes)
    models = [model for recipe in recipes.values() for model in recipe.named_models]
    _raise_any(mistakes, list(dict.fromkeys(models)))


def _merge_part(part: Part, folder: Path, made: Mapping[str, Path], out: Path, seed: int) -> None:
    """Merge one recipe of a file; `made` are the results of others, by their names."""
    from evomerge_worker.merge import export_checkpoint
    from evomerge_worker.prepare.mistakes import Mistakes

    mistakes = Mistakes()
    mistakes.found += part.written.problems
    recipe, checkpoints = _checked(part, folder, made, mistakes)
    export_checkpoint(recipe, checkpoints, out, mask_seed=seed, replace=False)


def _checked(
    part: Part, folder: Path, made: Mapping[str, Path], mistakes: "Mistakes"
) -> tuple[Recipe, dict[str, "Checkpoint"]]:
    """A recipe and its models, opened and checked."""
    from evomerge_worker.merge import anchor_of

    recipe = cast(Recipe, part.written.recipe)
    if recipe.vocabulary == BASE_TOKENIZER and (recipe.models or recipe.slices):
        recipe = recipe.with_vocabulary(anchor_of(recipe))  # never a folder that happens to be called base
    recipe, sources = _pinned(recipe, folder, made, mistakes)
    return recipe, _sources(recipe, sources, mistakes)


def _check_new(out: Path) -> None:
    try:
        out.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError.at(str(out), f"cannot be written: {error.strerror}; choose another folder") from error
    raise InputError.at(str(out), "exists already; choose a folder that does not")


def _pinned(
    recipe: Recipe, folder: Path, made: Mapping[str, Path], mistakes: "Mistakes"
) -> tuple[Recipe, dict[str, Source | None]]:
    """The recipe with one name for each model, and what each is; None where its name means nothing.

    A folder may be written as a, a/ and ./a: the first counts. A hub's model without a commit is named with the one
    that it has now, which is said.
    """

    names: dict[str, str] = {}
    first: dict[tuple[str, str], str] = {}
    sources: dict[str, Source | None] = {}
    for model in recipe.named_models:
        sources[model] = None
        with mistakes.collected():
            named = _source(model, recipe, folder, made)
            source = _with_commits(named, model)
            name = model if source == named else named_in_recipe(source)
            if name != model:
                sys.stderr.write(f"{model} is now {name}\n")
                del sources[model]
            names[model] = first.setdefault((source.uri.rstrip("/"), (source.adapter or "").rstrip("/")), name)
            sources[names[model]] = source.model_copy(update={"name": names[model]})
    return recipe.renamed(names), sources


def _with_commits(source: Source, model: str) -> Source:
    """The source with the commits that models of the hub have now, where `model` names none.

    Raises:
        InputError, StorageError: the hub has no such model, or does not answer. It may be a folder that was meant.
    """
    from evomerge_worker.store import with_commits

    try:
        return with_commits(source, model)
    except (InputError, StorageError) as error:
        words = "; ".join(problem.message for problem in error.problems)
        raise type(error).at(model, f"there is no such folder, and as a model of the hub, {words}") from error


def _sources(recipe: Recipe, sources: dict[str, Source | None], mistakes: "Mistakes") -> dict[str, "Checkpoint"]:
    """The models of a recipe, by the names it uses, checked as a prepare task checks them.

    They need not be causal language models. One that gives its tokenizer alone need not fit the others.

    Raises:
        InputError: the `mistakes` so far, and all that is wrong with its words, the models and how they fit, by the
            recipe's names.
    """
    from evomerge_worker.merge.slices import spoken_mistakes
    from evomerge_worker.prepare.architecture import check_own_configs
    from evomerge_worker.prepare.fit import check_config_donor, check_fit
    from evomerge_worker.prepare.sources import check_finite
    from evomerge_worker.store import Store, default_cache

    models, store = recipe.named_models, Store(Storage(), default_cache())
    mistakes.found += [Problem(path=path, message=message) for path, message in spoken_mistakes(recipe, set(models))]
    opened = [_opened(model, sources[model], store, mistakes) for model in models]
    merged = [source for source in opened if source.name in recipe.merged_models]
    first = recipe.base_model or next(iter(models), None)
    merged.sort(key=lambda source: source.name != first)
    check_fit(
        merged,
        mistakes,
        whole=not recipe.slices,
        in_place=_in_place(recipe, merged),
        vocabulary=recipe.vocabulary,
        one_config=recipe.config_source is not None,
    )
    for source in opened:
        if source.name == recipe.config_source and source not in merged and len(merged) > 1:
            check_config_donor(source, merged[0], mistakes)
    check_own_configs(merged, mistakes, evaluated=False)
    _check_recipe(recipe, opened, mistakes)
    for source in merged:
        with mistakes.collected():
            if source.checkpoint is not None:
                check_finite(source.checkpoint)
    _raise_any(mistakes, models)
    return {source.name: source.checkpoint for source in opened if source.checkpoint is not None}


def _raise_any(mistakes: "Mistakes", models: list[str]) -> None:
    """Raise what was found, under the names that the recipe has for its models."""
    names = {where_of(model): model for model in models}
    mistakes.found = [p.model_copy(update={"path": names.get(p.path, p.path)}) for p in mistakes.found]
    try:
        mistakes.raise_any(order=models)
    except StorageError as error:
        problems = [p.model_copy(update={"path": names.get(p.path, p.path)}) for p in error.problems]
        raise StorageError(in_words(problems), *problems) from error


def _opened(model: str, source: Source | None, store: "Store", mistakes: "Mistakes") -> "Opened":
    """What a recipe means by `model`, as far as it can be opened."""
    from evomerge_worker.prepare.sources import Opened, open_source

    return Opened(model) if source is None else open_source(source, store, mistakes, code=False)


def _source(model: str, recipe: Recipe, folder: Path, made: Mapping[str, Path]) -> Source:
    """What a recipe that lies in `folder` means by `model`; `made` are the results of other recipes, by their names.

    Raises:
        InputError: it means nothing; where it gives tokenizer or config alone, it may be a word that was meant.
    """
    try:
        return source_of(model, folder, made)
    except InputError as error:
        if model in recipe.merged_models:
            raise
        key, allowed = "config_source", "a model of the recipe"
        if model == recipe.vocabulary:
            key = "tokenizer_source" if recipe.tokenizer is None else "tokenizer.source"
            allowed = f"{UNION}, {BASE_TOKENIZER} or {allowed}"
        reason = "; ".join(problem.message for problem in error.problems)
        raise InputError.at(f"recipe.{key}", f"{model} is not {allowed}, and of another model: {reason}") from error


def _in_place(recipe: Recipe, merged: list["Opened"]) -> bool:
    """Whether every layer of the result has the number that it has in its sources, as far as is known."""
    from evomerge_worker.merge.layers import moved
    from evomerge_worker.merge.slices import anchor_of, has_form

    if not recipe.slices or not has_form(recipe):
        return True
    layers = {source.name: source.layers for source in merged}[anchor_of(recipe)]
    return layers is not None and not moved(recipe.slices, layers)


def _check_recipe(recipe: Recipe, opened: list["Opened"], mistakes: "Mistakes") -> None:
    """Collect what keeps a recipe from being carried out over the models that it names, as far as they are known."""
    from evomerge_worker.merge.plan import plan_merge
    from evomerge_worker.merge.slices import counted_mistakes, has_form, sliced
    from evomerge_worker.merge.vocabulary import Vocabularies

    if not has_form(recipe):
        return
    layers = {source.name: source.layers for source in opened if source.layers is not None}
    slices = sliced(recipe, {source.name: 1 for source in opened} | layers)
    counted = [Problem(path=p, message=m) for p, m in counted_mistakes(recipe, slices, layers)]
    mistakes.found += counted
    checkpoints = {source.name: source.checkpoint for source in opened if source.checkpoint is not None}
    readable = recipe.vocabulary is None or all(source.vocabulary is not None for source in opened)
    if not counted and readable and len(checkpoints) == len(opened):
        with mistakes.collected():
            plan_merge(recipe, Vocabularies().aligned(recipe, checkpoints))
