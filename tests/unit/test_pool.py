"""Helper processes: what a call may take, that it ends there, and that neither loop nor quick callers wait for it."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from anyio.from_thread import start_blocking_portal

import heavy_calls
from evomerge_operator.planning.pool import TOO_LARGE, TOO_LONG, PlanningError, Pool

R = TypeVar("R")
Run = Callable[[Coroutine[Any, Any, R]], R]
CPU_SECONDS = 1
MEMORY = 128 << 20


@pytest.fixture(scope="module")
def run() -> Iterator[Run[Any]]:
    """Runs in one event loop, so that the tests share helper processes, which take a second to start."""
    with start_blocking_portal() as portal:
        yield lambda coroutine: portal.call(asyncio.wait_for, coroutine, 60)


@pytest.fixture
def pool() -> Pool:
    return Pool(cpu_seconds=CPU_SECONDS, memory_bytes=MEMORY)


async def begin(pool: Pool, *quick: str) -> None:
    """Make these callers quick ones, and have both helper processes started."""
    for caller in quick:
        await pool.call(caller, heavy_calls.square, 1)
    calls = [pool.call(caller, heavy_calls.take_cpu, 0.1) for caller in (quick[0], "another")]
    await asyncio.gather(*calls)


def test_a_call_returns_its_result_from_another_process(run: Run[Any], pool: Pool) -> None:
    assert run(pool.call("a", heavy_calls.square, 7)) == 49
    assert run(pool.call("a", heavy_calls.process)) != heavy_calls.process()


@pytest.mark.parametrize("endless", [heavy_calls.loop_forever, heavy_calls.match_forever])
def test_a_call_that_takes_too_much_time_is_ended_and_the_next_works(
    run: Run[Any], pool: Pool, endless: Callable[[], None]
) -> None:
    with pytest.raises(PlanningError, match=r"took more than 1 s of CPU time; give it fewer models") as raised:
        run(pool.call("a", endless))
    assert raised.value.reason == TOO_LONG
    assert run(pool.call("a", heavy_calls.square, 7)) == 49


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (heavy_calls.fill_memory, ()),
        (heavy_calls.fill_memory_unevenly, ()),
        (heavy_calls.take_memory, (2 * MEMORY,)),
    ],
)
def test_a_call_that_takes_too_much_memory_is_ended_and_the_next_works(
    run: Run[Any], pool: Pool, function: Callable[..., object], arguments: tuple[int, ...]
) -> None:
    words = "took more than 128 MiB of memory, or ended its process; give it fewer models"
    with pytest.raises(PlanningError, match=words) as raised:
        run(pool.call("a", function, *arguments))
    assert raised.value.reason == TOO_LARGE
    assert run(pool.call("a", heavy_calls.resident)) < MEMORY, "what it took is given back as a whole"
    assert run(pool.call("a", heavy_calls.take_memory, MEMORY // 2)) == MEMORY // 2


def test_a_call_that_ends_its_process_is_told_as_too_large_and_the_next_works(run: Run[Any], pool: Pool) -> None:
    with pytest.raises(PlanningError, match="or ended its process") as raised:
        run(pool.call("a", heavy_calls.end_process))
    assert raised.value.reason == TOO_LARGE
    assert run(pool.call("a", heavy_calls.square, 7)) == 49


def test_the_limit_of_time_is_one_of_each_call_and_not_of_the_process(run: Run[Any], pool: Pool) -> None:
    async def calls() -> set[int]:
        for _ in range(2):
            await pool.call("a", heavy_calls.take_cpu, 0.7 * CPU_SECONDS)
        return {await pool.call("a", heavy_calls.process) for _ in range(3)}

    assert len(run(calls())) == 1


def test_an_error_of_the_function_is_raised_as_it_is(run: Run[Any], pool: Pool) -> None:
    with pytest.raises(KeyError, match="of its own"):
        run(pool.call("a", heavy_calls.fail))


def test_a_call_that_is_given_up_ends_its_process_and_the_next_works(run: Run[Any], pool: Pool) -> None:
    async def calls() -> tuple[int, int, int]:
        before = await pool.call("a", heavy_calls.process)
        endless = asyncio.create_task(pool.call("a", heavy_calls.loop_forever))
        await asyncio.sleep(0.05)
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        return before, await pool.call("a", heavy_calls.process), await pool.call("a", heavy_calls.square, 7)

    before, after, result = run(calls())
    assert (before != after, result) == (True, 49)


def test_a_quick_caller_is_answered_while_another_plans_at_length(run: Run[Any], pool: Pool) -> None:
    async def calls() -> list[object]:
        ended: list[object] = []
        await begin(pool, "quick")
        endless = asyncio.create_task(pool.call("long", heavy_calls.loop_forever))
        endless.add_done_callback(lambda done: ended.append(type(done.exception())))
        waiting = asyncio.create_task(pool.call("as long", heavy_calls.square, 2))
        waiting.add_done_callback(lambda done: ended.append(done.result()))
        await asyncio.sleep(0)
        for number in (7, 8, 9):
            ended.append(await pool.call("quick", heavy_calls.square, number))
        await asyncio.wait([endless, waiting])
        return ended

    # One that has never been quick yet waits like those that were not.
    assert run(calls()) == [49, 64, 81, PlanningError, 4]


def test_one_that_was_quick_once_holds_up_no_quick_caller_twice(run: Run[Any], pool: Pool) -> None:
    async def calls() -> list[str]:
        ended: list[str] = []
        await begin(pool, "quick", "turning")
        with pytest.raises(PlanningError):
            await pool.call("turning", heavy_calls.loop_forever)
        endless = asyncio.create_task(pool.call("turning", heavy_calls.loop_forever))
        endless.add_done_callback(lambda _: ended.append("turning"))
        await asyncio.sleep(0)
        await pool.call("quick", heavy_calls.square, 7)
        ended.append("quick")
        await asyncio.wait([endless])
        return ended

    assert run(calls()) == ["quick", "turning"]


def test_however_many_callers_there_are_two_processes_work(run: Run[Any], pool: Pool) -> None:
    async def calls() -> set[int]:
        made = [pool.call(f"caller {number}", heavy_calls.process) for number in range(20)]
        return set(await asyncio.gather(*made, *[pool.call("caller 0", heavy_calls.process) for _ in range(20)]))

    assert len(run(calls())) <= 2


def test_the_event_loop_goes_on_while_calls_take_all_they_can(run: Run[Any], pool: Pool) -> None:
    async def calls() -> None:
        await begin(pool, "large")
        endless = [
            asyncio.create_task(pool.call("long", heavy_calls.loop_forever)),
            asyncio.create_task(pool.call("large", heavy_calls.fill_memory)),
        ]
        for _ in range(50):
            await asyncio.sleep(0.001)
            assert not endless[0].done()
        with pytest.raises(PlanningError):
            await endless[0]
        with pytest.raises(PlanningError):
            await endless[1]

    run(calls())


def test_a_caller_that_is_let_go_is_unknown(run: Run[Any], pool: Pool) -> None:
    run(pool.call("a", heavy_calls.square, 7))
    assert set(pool._last_seconds) == {("a", "square")}
    pool.forget("a")
    pool.forget("never seen")
    assert pool._last_seconds == {}


def test_the_reasons_are_words_that_a_condition_may_have() -> None:
    assert (TOO_LONG, TOO_LARGE) == ("PlanningTooLong", "PlanningTooLarge")
