"""Carrying out a plan, tensor by tensor, in float32 with one rounding at the end."""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from evomerge_worker.errors import CandidateError
from evomerge_worker.merge import native
from evomerge_worker.merge.draws import Drawing
from evomerge_worker.merge.formula import Formula, Votes, plain
from evomerge_worker.merge.method import InputTensor
from evomerge_worker.merge.methods import method_named
from evomerge_worker.merge.plan import Input, TensorPlan
from evomerge_worker.merge.statistics_cache import Statistics
from evomerge_worker.merge.thinning import Chosen
from evomerge_worker.merge.threads import ALONE, Threads, pool, threads
from evomerge_worker.pages import HUGE_PAGE, huge_pages
from evomerge_worker.shards import Checkpoint

CPU = torch.device("cpu")
_NO_BASE = torch.empty(0)
_WORTH_THREADS = 1 << 22
"""Elements of a model below which starting threads takes longer than they save."""
_SHARES = 16
"""Into so many a thread a model's tensors are divided while it is decided what becomes of them."""

Begun = native.Ready | bool | Tensor
"""The call that puts a tensor of the result in its place, if the compiled library does; else it is done, and this says
whether it is finite: on a device as a scalar tensor, which need not be waited for."""


class Merger:
    """Carries out plans over the same sources. `mask_seed` is that of DARE's draws.

    `statistics` keeps what is known of the sources; without it nothing is kept.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Checkpoint],
        mask_seed: int,
        device: torch.device = CPU,
        statistics: Statistics | None = None,
    ) -> None:
        self._checkpoints = checkpoints
        self._drawings = {
            name: Drawing(mask_seed, partial(getattr, checkpoint, "fingerprint"))
            for name, checkpoint in checkpoints.items()
        }
        self._device = device
        self._statistics = statistics
        self._on_cpu = device.type == "cpu"
        self._cores = torch.get_num_threads()
        self._threads = self._cores if self._on_cpu else 1

    def merged(self, plans: Sequence[TensorPlan]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the result by name, in the order of `plans`, each in its plan's dtype.

        Those that come next are merged while the caller is busy with one.

        Raises:
            CandidateError: a tensor that is not finite comes out.
        """
        left = iter(plans)
        with pool(self._threads) as workers:

            def submitted(number: int) -> Iterator[tuple[TensorPlan, Future[tuple[Tensor, bool | Tensor]]]]:
                return ((plan, workers.submit(self._merge, plan)) for plan in islice(left, number))

            coming = deque(submitted(self._threads + 2))  # a large one keeps no thread from going on
            try:
                while coming:
                    plan, future = coming.popleft()
                    tensor, finite = future.result()
                    if not bool(finite):
                        raise _not_finite(plan)
                    coming.extend(submitted(1))
                    yield plan.name, tensor
                    del tensor, future
            finally:
                for _, future in coming:
                    future.cancel()

    def merge_all(self, plans: Sequence[TensorPlan], outs: Mapping[str, Tensor]) -> None:
        """Put every tensor of the result for which there is one of `outs` into that, rounded first to its plan's dtype.

        All is decided before the first one is merged: weights passing by drive Python out of the CPU's caches. The
        threads take the largest first, and those of one size in the order in which they lie in memory.

        Raises:
            CandidateError: a tensor that is not finite came out.
        """
        pairs = [(plan, outs[plan.name]) for plan in plans if plan.name in outs]
        pairs.sort(key=lambda pair: (-pair[1].numel(), pair[1].data_ptr()))
        few = sum(out.numel() for _, out in pairs) < _WORTH_THREADS
        begun: list[Begun] = [True] * len(pairs)
        with threads(1 if few else self._threads) as workers:
            count = _SHARES * workers.number
            shares = [slice(first, None, count) for first in range(count)]
            decided = workers.map(lambda share: [self._begin(*pair) for pair in pairs[share]], shares)
            for share, made in zip(shares, decided, strict=True):
                begun[share] = made
            done = finished(begun, workers)
        wrong = {plan.name for (plan, _), fine in zip(pairs, done, strict=True) if not bool(fine)}
        if wrong:
            raise _not_finite(next(plan for plan in plans if plan.name in wrong))

    def _merge(self, plan: TensorPlan) -> tuple[Tensor, bool | Tensor]:
        out = self._fresh(self.shape(plan), plan.dtype)
        return out, finished([self._begin(plan, out)])[0]

    def _fresh(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        if not self._on_cpu or size < HUGE_PAGE:
            return torch.empty(shape, dtype=dtype, device=self._device)
        return huge_pages(size)[:size].view(dtype).view(shape)

    def _begin(self, plan: TensorPlan, out: Tensor) -> Begun:
        """Put one tensor of the result into `out`, rounded to the plan's dtype and, if that is another, to `out`'s.

        Raises:
            CandidateError: the parameters make no sense for these tensors.
        """
        if not out.numel():
            return True
        if plan.method is None:
            tensor = self._load(plan.inputs[0])
            out.copy_(tensor)
            return out.dtype == tensor.dtype or bool(out.isfinite().all())
        try:
            formula = method_named(plan.method)(self._sources(plan), self._base(plan), plan.shared)
        except CandidateError as error:
            raise CandidateError(error.reason, f"tensor {plan.name}: {error}") from error
        if out.dtype != plan.dtype or not out.is_contiguous():
            rounded = torch.empty(out.shape, dtype=plan.dtype, device=out.device)
            finite = carry_out(formula, rounded)
            out.copy_(rounded)
            return finite
        return begin(formula, out)

    def shape(self, plan: TensorPlan) -> tuple[int, ...]:
        """The shape of a tensor of the result."""
        return self._checkpoints[plan.like.model].shape(plan.like.tensor)

    def _load(self, item: Input) -> Tensor:
        tensor = self._checkpoints[item.model].tensor(item.tensor)
        return tensor if self._on_cpu else tensor.to(self._device)

    def _base(self, plan: TensorPlan) -> Tensor:
        return _NO_BASE if plan.base is None else self._load(plan.base)

    def _sources(self, plan: TensorPlan) -> list[InputTensor]:
        sources = []
        for item in plan.inputs:
            known = None
            if plan.base is not None and self._statistics is not None:
                pair = self._checkpoints[item.model], self._checkpoints[plan.base.model]
                known = self._statistics.of(*pair, plan.base.tensor, self._cores)
            sources.append(InputTensor(self._load(item), item.tensor, item.values, self._drawings[item.model], known))
        return sources


def begin(formula: Formula, out: Tensor) -> Begun:
    """Put a method's result into `out`, of its shape and contiguous, or say what call of the library does so."""
    ready = native.ready(formula, out)
    if ready is None:
        return plain(formula, out)
    masks = isinstance(formula, Votes) and any(isinstance(delta.thinning, Chosen) for delta in formula.deltas)
    return finished([ready])[0] if masks else ready  # those of all tensors would fill the memory until all is decided


def carry_out(formula: Formula, out: Tensor) -> bool | Tensor:
    """Put a method's result into `out`, of its shape and contiguous; whether it is finite there."""
    return finished([begin(formula, out)])[0]


def finished(begun: Sequence[Begun], workers: Threads = ALONE) -> list[bool | Tensor]:
    """Do what was only made ready; for each whether all is finite."""
    done = iter(native.run([work for work in begun if isinstance(work, native.Ready)], workers))
    return [next(done) if isinstance(work, native.Ready) else work for work in begun]


def _not_finite(plan: TensorPlan) -> CandidateError:
    """The failure of a merge of which this tensor came out wrong. The sources are finite."""
    name, dtype = plan.name, str(plan.dtype).removeprefix("torch.")
    message = f"tensor {name} of the merged model holds NaN or infinity: with these weights it does not fit {dtype}"
    return CandidateError("NotFinite", message)
