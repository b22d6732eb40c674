"""operator.overhead: a search through the operator against a bare loop that keeps as many of the same Jobs in flight.

1,000 candidates, 50 at a time, 5 s each, on a real API server, controller manager and scheduler; KWOK plays the nodes
and `pod_stand_in.py` their kubelets. The search is whole, from its creation to Succeeded: prepare, baselines,
candidates (a MergeCandidate each, told and kept), conclude, export. The bare loop creates the same Jobs, waits for
their Complete condition, deletes them and creates the next, and keeps nothing. Turn by turn on one cluster, which
`tests/cluster/lab` brings up in a sandbox of its own (Linux, root) and takes down.
"""

import argparse
import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack

import api
import fake_nodes
from figures import figure
from sandboxed import inside_the_sandbox

from lab import binaries

NAMESPACE = "bench"
BASELINES = 3


async def main() -> None:
    """Measure, inside the cluster's sandbox."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--parallelism", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    await fake_nodes.prepare(NAMESPACE)
    searches, loops = [], []
    with ExitStack() as running:
        running.enter_context(fake_nodes.kubelets(options.seconds))
        operator = running.enter_context(fake_nodes.operator(NAMESPACE))
        async with api.session() as session:
            for repeat in range(options.repeats):
                used = fake_nodes.cpu_seconds(operator)
                searches.append(await search(session, f"search-{repeat}", options))
                used = fake_nodes.cpu_seconds(operator) - used
                loops.append(await loop(session, f"search-{repeat}", options))
                print(f"{searches[-1]:.1f} s, the loop {loops[-1]:.1f} s; the operator's CPU {used:.1f} s", flush=True)
    figure(
        "operator_overhead",
        "operator.overhead",
        [s / b for s, b in zip(searches, loops, strict=True)],
        "times the wall time",
        reference=f"a bare loop that keeps {options.parallelism} Jobs in flight, on the same cluster, turn by turn",
        goal="<= 1.2",
        candidates=options.candidates,
        seconds_each=options.seconds,
        search_seconds=searches,
        loop_seconds=loops,
    )


async def search(session: api.Session, name: str, options: argparse.Namespace) -> float:
    """The seconds of a whole search."""
    began = time.monotonic()
    manifest = fake_nodes.manifest(name, NAMESPACE, options.candidates, options.parallelism)
    await api.request(session, "POST", fake_nodes.path(NAMESPACE), manifest)
    async for event in api.watch(session, fake_nodes.path(NAMESPACE)):
        phase = event["object"].get("status", {}).get("phase")
        if event["object"]["metadata"]["name"] == name and phase in ("Succeeded", "Failed"):
            if phase == "Failed":
                raise RuntimeError(f"the search failed: {event['object']['status']}")
            return time.monotonic() - began
    raise AssertionError("a watch does not end")


async def loop(session: api.Session, like: str, options: argparse.Namespace) -> float:
    """The seconds in which a bare loop does as many Jobs."""
    jobs = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
    labels = {"bench": f"loop-{like}"}
    names = [f"{like}-loop-{number}" for number in range(options.candidates + BASELINES)]
    complete = {name: asyncio.Event() for name in names}

    async def listen() -> None:
        async for event in api.watch(session, jobs, f"bench=loop-{like}"):
            conditions = event["object"].get("status", {}).get("conditions", ())
            if any(condition["type"] == "Complete" for condition in conditions):
                complete[event["object"]["metadata"]["name"]].set()

    async def work(left: Iterator[str]) -> None:
        for name in left:
            job = fake_nodes.bare_job(name, NAMESPACE, labels)
            await api.request(session, "POST", jobs, job)
            await complete[name].wait()
            await api.request(session, "DELETE", f"{jobs}/{name}", {"propagationPolicy": "Background"})

    began = time.monotonic()
    listening = asyncio.create_task(listen())
    left = iter(names)
    await asyncio.gather(*(work(left) for _ in range(options.parallelism)))
    listening.cancel()
    return time.monotonic() - began


if __name__ == "__main__":
    inside_the_sandbox(lambda: asyncio.run(main()), lambda _: binaries.build_kwok())
