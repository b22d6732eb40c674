"""What runs in helper processes: pure functions of what they are given. Proposers travel as pickles.

The pickles come from these functions and go to them: nobody else ever makes one.
"""

import gzip
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from evomerge_contract.base import canonical_json
from evomerge_contract.candidate import Candidate, Genome
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import ConcludeResult, PrepareResult, Problem, SelectResult
from evomerge_contract.status import CandidateSpec, CandidateStatus
from evomerge_contract.task import ConcludeTask, ExportTask, SelectTask
from evomerge_operator.errors import InputError
from evomerge_operator.kube.candidates import finished_candidate, genome_in, identity_of
from evomerge_operator.kube.objects import Document
from evomerge_operator.manifest import parse_manifest
from evomerge_operator.plan import finish
from evomerge_operator.plan.progress import Result
from evomerge_operator.plan.proposer import Proposer, Start, begin_stage
from evomerge_operator.plan.run import BASELINES, Common, Key, Run, StageRun, make_run
from evomerge_operator.planning.page import Page, PageItem
from evomerge_operator.recipes import Seeded, made_of, recipe_text
from evomerge_operator.search import Outcome

_STATE_BYTES = 64 << 20


def check(document: Document, name: str) -> EvoMerge | list[Problem]:
    """A manifest, or every mistake in it."""
    try:
        return parse_manifest(document, source=name, folder=None)
    except InputError as error:
        return error.problems


def begin(
    manifest: EvoMerge, prepared: PrepareResult, report_dir: str, pinned: Sequence[str] | None
) -> tuple[Run, bytes] | list[Problem]:
    """A prepared run with its first stage begun and that stage's proposer, or the mistakes that keep it from it."""
    try:
        run = make_run(manifest, prepared, report_dir, pinned)
        return run, _dump(begin_stage(run, len(run.stages)))
    except InputError as error:
        return error.problems


def begin_next(common: Common, number: int, prepared: PrepareResult) -> tuple[StageRun, bytes] | list[Problem]:
    """A stage of a run that has begun, and its proposer, or the mistakes that keep it from beginning."""
    try:
        proposer = Proposer(common, number, prepared)
        return proposer.stage_run(), _dump(proposer)
    except InputError as error:
        return error.problems


def starts(
    proposer: bytes, outcomes: Sequence[tuple[int, Outcome]], keys: Sequence[Key], genomes: Mapping[int, Genome]
) -> tuple[bytes, list[Start]]:
    """Candidates as tasks, after the search was told `outcomes`; those that are not in `genomes` are asked for."""
    loaded = _load(proposer)
    loaded.tell(outcomes)
    made = loaded.starts(keys, genomes)
    return _dump(loaded), made


def read(proposer: bytes, page: bytes) -> Page:
    """Read a page as the API server has sent it; the genomes are as they were asked, never computed again."""
    loaded = _load(proposer)
    listed = json.loads(page)
    items = []
    try:
        for document in listed.get("items") or []:
            name = document["metadata"]["name"]
            item, candidate = _item(loaded, document)
            problem = loaded.replay(candidate) if candidate else None
            if problem is not None:
                return Page(proposer, problem=f"the search log {problem}")
            items.append(item)
    except ValueError as error:
        return Page(proposer, problem=f"the MergeCandidate {name} cannot be read: {error}")
    following = listed.get("metadata", {}).get("continue") or ""
    hole = None if following else loaded.hole()
    return Page(_dump(loaded), items, following, hole and f"the search log {hole}")


def _item(proposer: Proposer, document: Document) -> tuple[PageItem, Candidate | None]:
    """What a MergeCandidate says, and the whole candidate if it is finished."""
    try:
        spec = CandidateSpec.model_validate(document["spec"])
        status = CandidateStatus.model_validate(document.get("status") or {})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    key = Key(spec.stage, spec.index)
    if spec.stage not in (BASELINES, proposer.stage.name):
        raise ValueError(f"there is no stage {spec.stage}")
    if spec.stage == BASELINES and spec.index >= len(proposer.baselines):
        raise ValueError(f"there is no baseline {spec.index}")
    genome = genome_in(spec)
    if (genome is None) != (spec.stage == BASELINES):
        raise ValueError("a baseline has no genome, and a candidate of the search has one")
    recipe = proposer.baselines[spec.index].recipe if spec.stage == BASELINES else None
    candidate = finished_candidate(spec, status, genome, recipe)
    if candidate is None and genome is not None:
        proposer.show(spec.index, genome)
    without = candidate and candidate.model_copy(update={"genome": None})
    return PageItem(key, identity_of(document), status, without, genome if candidate is None else None), candidate


def facts_part(page: bytes, preceded: bool) -> tuple[bytes, int, str]:
    """The finished candidates of a page, as a piece of a run report's JSON list.

    `preceded`: pieces before it had some. Returns the piece, how many there are in it, and how to ask for the next
    page.
    """
    listed = json.loads(page)
    texts = []
    for document in listed.get("items") or []:
        spec = CandidateSpec.model_validate(document["spec"])
        status = CandidateStatus.model_validate(document.get("status") or {})
        candidate = finished_candidate(spec, status, genome_in(spec), None)
        if candidate is not None:
            texts.append(canonical_json(candidate.wire()))
    text = ("," if preceded and texts else "") + ",".join(texts)
    return gzip.compress(text.encode(), mtime=0), len(texts), listed.get("metadata", {}).get("continue") or ""


def ranked(proposer: bytes, results: Mapping[int, Result]) -> list[int]:
    """The finalists among finished candidates, as the search ranks them.

    Raises:
        RunError: no candidate succeeded.
    """
    return finish.finalists(_load(proposer), results)


def select_task(proposer: bytes, chosen: Sequence[Candidate]) -> SelectTask:
    """See `plan.finish`."""
    return finish.select_task(_load(proposer), chosen)


def conclude_task(
    proposer: bytes, chosen: Sequence[Candidate], selected: SelectResult | None, compared: Sequence[str]
) -> ConcludeTask:
    """See `plan.finish`."""
    return finish.conclude_task(_load(proposer), chosen, selected, compared)


def stage_winner_task(proposer: bytes, selected: SelectResult, winner: Candidate, out: str) -> ExportTask:
    """See `plan.finish`."""
    return finish.stage_winner_task(_load(proposer), selected, winner, out)


def stage_winner_recipe(proposer: bytes, selected: SelectResult, winner: Candidate) -> Seeded:
    """See `plan.finish`."""
    loaded = _load(proposer)
    return Seeded(finish.stage_winner_recipe(loaded, selected, winner), loaded.stage.search.seed)


def export_task(
    proposer: bytes,
    winner: Candidate,
    conclusion: ConcludeResult,
    out: str,
    facts: str,
    drop: Sequence[str],
    earlier: Mapping[str, Seeded],
) -> ExportTask:
    """See `plan.finish`; `earlier` are the recipes of other stages' winners, by their names."""
    loaded = _load(proposer)
    recipe = Seeded(finish.winner_recipe(loaded, winner), loaded.stage.search.seed)
    parts = {name: one.recipe for name, one in made_of(recipe.recipe, earlier).items()}
    text = recipe_text(recipe, loaded.manifest, Path("/"), earlier)
    return finish.export_task(loaded, winner, conclusion, out, facts=facts, recipe_text=text, drop=drop, earlier=parts)


def _dump(proposer: Proposer) -> bytes:
    """A proposer on its way to the next call.

    Raises:
        MemoryError: it is so large that the process which passes it on would suffer.
    """
    dumped = pickle.dumps(proposer, pickle.HIGHEST_PROTOCOL)
    if len(dumped) > _STATE_BYTES:
        raise MemoryError
    return dumped


def _load(proposer: bytes) -> Proposer:
    loaded: Proposer = pickle.loads(proposer)  # noqa: S301 - made by these functions alone
    return loaded
