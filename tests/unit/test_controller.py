"""The loop of an EvoMerge goes on whatever a look comes to, and ends only with its EvoMerge."""

import asyncio
from datetime import datetime

import pytest

from evomerge_operator.controller import Controller
from evomerge_operator.kube.errors import ConflictError, GoneError, NotLeaderError, RefusedError, UnavailableError
from evomerge_operator.planning.pool import Pool
from evomerge_operator.services.known import Known
from evomerge_operator.services.reconcile import Reconciler, VanishedError
from kube_documents import evomerge, job, known_of


class Looks(Reconciler):
    """Looks that end as they are told, one after the other; then well."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__(None, None, Pool())  # type: ignore[arg-type]  # no look asks for more
        self._errors = list(errors)
        self.known: list[Known] = []

    async def reconcile(self, known: Known, now: datetime) -> None:
        self.known.append(known)
        if self._errors:
            raise self._errors.pop(0)


async def looks_after(looks: Looks, count: int) -> Controller:
    """A controller that has seen an EvoMerge, once it has looked so often."""
    controller = Controller(looks)
    controller.saw_evomerge(evomerge(), deleted=False)
    async with asyncio.timeout(20):
        while len(looks.known) < count:
            await asyncio.sleep(0.01)
    return controller


@pytest.mark.parametrize("error", [NotLeaderError, GoneError, ConflictError, RefusedError, UnavailableError, KeyError])
def test_after_an_error_it_looks_again(error: type[Exception]) -> None:
    async def run() -> None:
        looks = Looks(error("no"))
        controller = await looks_after(looks, 1)
        controller.saw_evomerge(evomerge(generation=2, version=2), deleted=False)  # news end its wait for the tick
        async with asyncio.timeout(20):
            while len(looks.known) < 2:
                await asyncio.sleep(0.01)
        await controller.stop()

    asyncio.run(run())


def test_an_evomerge_that_is_gone_is_forgotten() -> None:
    async def run() -> None:
        looks = Looks(VanishedError("gone"))
        controller = await looks_after(looks, 1)
        controller.saw_evomerge(evomerge(version=2), deleted=False)  # one that is there after all is known anew
        async with asyncio.timeout(20):
            while len(looks.known) < 2:
                await asyncio.sleep(0.01)
        assert looks.known[0] is not looks.known[1]
        await controller.stop()

    asyncio.run(run())


def test_a_job_of_another_namespace_is_no_news_of_an_evomerge() -> None:
    async def run() -> None:
        looks = Looks()
        controller = await looks_after(looks, 1)
        made = job(known_of(evomerge()))
        elsewhere = made | {"metadata": made["metadata"] | {"namespace": "other"}}
        controller.saw_job(elsewhere, deleted=False)
        assert looks.known[0].jobs == {}
        controller.saw_job(made, deleted=False)
        assert set(looks.known[0].jobs) == {made["metadata"]["name"]}
        await controller.stop()

    asyncio.run(run())
