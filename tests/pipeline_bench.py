"""What a pipeline needs to work, for tests: tiny models, a data set, and tasks about them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evomerge_contract.manifest import Jsonl, Objective, Storage
from evomerge_contract.recipe import Recipe, RecipeModel
from evomerge_contract.report import Report
from evomerge_contract.task import (
    Baseline,
    CardFacts,
    ConcludeTask,
    DataDigests,
    EvaluateTask,
    ExportTask,
    Finalist,
    PrepareTask,
    Source,
    Task,
)
from evomerge_worker.pipeline import Pipeline
from tiny_models import Tiny


class Bench:
    """Two tiny models, a data set, and tasks about them that report into `folder`.

    `publish` brings the folder to where `uri_of` says that its files lie.
    """

    def __init__(
        self,
        folder: Path,
        tiny: Tiny,
        publish: Callable[[Path], None] = lambda _: None,
        uri_of: Callable[[Path], str] = Path.as_uri,
        storage: Storage | None = None,
    ) -> None:
        self.folder = folder
        self.models = {}
        for seed, name in enumerate("ab", start=1):
            self.models[name] = folder / name
            shutil.copytree(tiny("llama", seed=seed), self.models[name])
        for split, first in (("search", 0), ("select", 10), ("test", 20)):
            items = [{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(first, first + 4)]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        jsonl = Jsonl(**{s: uri_of(folder / f"{s}.jsonl") for s in ("search", "select", "test")})
        self.objectives = [Objective(name="sums", jsonl=jsonl, metric="exact_match", max_new_tokens=3)]
        self.common = {
            "report_dir": uri_of(folder / "reports"),
            "objectives": self.objectives,
            "storage": storage or Storage(),
        }
        sources = [Source(name=n, uri=uri_of(path)) for n, path in self.models.items()]
        publish(folder)
        prepared = self.done(PrepareTask(**self.common, sources=sources, methods=["linear"])).prepare
        assert prepared is not None
        digests = {s.name: s.digest for s in prepared.sources}
        self.common["sources"] = [s.model_copy(update={"digest": digests[s.name]}) for s in sources]
        data = DataDigests(**{split: found.digest for split, found in prepared.data["sums"].items()})
        self.common["data"] = {"sums": data}

    def done(self, task: Task) -> Report:
        return Pipeline(self.folder / "cache").carry_out(task)

    def evaluate(self, weight: float = 0.5) -> EvaluateTask:
        return EvaluateTask(**self.common, recipe=mix(weight), trace={"index": 7})

    def probe(self) -> PrepareTask:
        """A prepare task that knows what is to be found."""
        return PrepareTask(**self.common, methods=["linear"])

    def export(self, out: str, **fields: Any) -> ExportTask:
        """The export of a mix, with a card about a conclusion that is reached first."""
        conclude = ConcludeTask(
            **self.common,
            finalists=[Finalist(index=3, fitness=0.5, recipe=mix(0.3))],
            baselines=[Baseline(name=n, role="source", recipe=mix(w)) for n, w in (("a", 1.0), ("b", 0.0))],
        )
        conclusion = self.done(conclude).conclude
        assert conclusion is not None
        assert conclusion.winner == 3
        assert [row.role for row in conclusion.test] == ["winner", "source", "source"]
        card = CardFacts(
            run="tiny",
            method="linear",
            algorithm="GA/1",
            candidates=4,
            seed=0,
            objectives=self.objectives,
            data=self.common["data"],
            conclusion=conclusion,
        )
        common = {k: v for k, v in self.common.items() if k not in ("objectives", "data")}
        return ExportTask(**common, out=out, recipe=mix(0.3), **({"card": card} | fields))


def mix(weight: float) -> Recipe:
    models = [RecipeModel(model=n, parameters={"weight": w}) for n, w in (("a", weight), ("b", 1 - weight))]
    return Recipe(merge_method="linear", models=models, dtype="float32")
