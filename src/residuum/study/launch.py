"""Where cells are run: here, on all cores, or as jobs of Ray or Slurm, whose schedulers we leave the scheduling to.

A launcher is given the cells to run and the store, and yields each cell once it is finished. Jobs elsewhere write to
the same store, so its folder must be one that all machines share.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from multiprocessing import active_children, get_context, parent_process
from typing import Any

from residuum.cores import cores
from residuum.errors import InputError
from residuum.study.cell import Cell
from residuum.study.store import Store

Launch = Callable[[list[Cell], Store], Iterator[Cell]]


def locally(cells: list[Cell], store: Store) -> Iterator[Cell]:
    """One after another, in this process. What another process is just running comes last, when it may be done."""
    elsewhere = []
    for cell in cells:
        if store.finish(cell, wait=False) is None:
            elsewhere.append(cell)
        else:
            yield cell
    for cell in elsewhere:
        store.finish(cell)
        yield cell


@dataclass(frozen=True)
class OnCores:
    """In so many processes of one thread each: a small model has nothing to share among threads."""

    workers: int

    def __call__(self, cells: list[Cell], store: Store) -> Iterator[Cell]:
        if min(self.workers, len(cells)) < 2:
            yield from locally(cells, store)
            return
        others = active_children()
        with ProcessPoolExecutor(self.workers, get_context("spawn"), _one_thread) as pool:
            try:
                by_cost = sorted(cells, key=lambda cell: -cell.cost)  # else the last process works alone
                jobs = {pool.submit(_job, *_arguments(cell, store)): cell for cell in by_cost}
                for job in as_completed(jobs):
                    _check(jobs[job], store, job.result)
                    yield jobs[job]
            except BaseException:  # an interruption, or a cell that failed: none of the others is waited for
                for process in set(active_children()).difference(others):
                    process.kill()
                raise


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is the parent's to answer


def _leave_with_parent() -> None:
    """A parent that was killed cannot tell its processes; what they have finished is in the store."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def on_ray(cells: list[Cell], store: Store) -> Iterator[Cell]:
    """One Ray task a cell, on the cluster that RAY_ADDRESS names; without one, on this machine's cores."""
    ray = _extra("ray")
    if not ray.is_initialized():
        ray.init(log_to_driver=False)  # what a worker prints is not the study's output
    task = ray.remote(_job)
    pending = {task.remote(*_arguments(cell, store)): cell for cell in cells}
    while pending:
        (job,), _ = ray.wait(list(pending), num_returns=1)
        cell = pending.pop(job)
        _check(cell, store, partial(ray.get, job))
        yield cell


def on_slurm(cells: list[Cell], store: Store) -> Iterator[Cell]:
    """One Slurm array, a job of it a cell; partition, account and the like are sbatch's own SBATCH_PARTITION etc.

    A job may take an hour unless SBATCH_TIMELIMIT says otherwise. Its logs are in the store's folder `slurm`.
    """
    submitit = _extra("slurm")
    if not cells:
        return
    try:
        executor = submitit.AutoExecutor(folder=store.folder.resolve() / "slurm", cluster="slurm")
    except RuntimeError as error:
        raise InputError(f"--launch slurm: {error}: run it where sbatch is, or choose --launch local") from None
    executor.update_parameters(name="residuum", timeout_min=60)
    jobs = executor.map_array(_job, *zip(*(_arguments(cell, store) for cell in cells), strict=True))
    of = {id(job): cell for job, cell in zip(jobs, cells, strict=True)}
    for job in submitit.helpers.as_completed(jobs):
        _check(of[id(job)], store, job.result)
        yield of[id(job)]


def launcher(name: str, workers: int | None = None) -> Launch:
    """`local`, `ray` or `slurm`; local work is shared by `workers` processes, or as many as there are cores."""
    if name != "local":
        if workers is not None:
            raise InputError(f"--workers is for --launch local: leave it away, {name} says how many jobs run at once")
        _extra(name)
        return {"ray": on_ray, "slurm": on_slurm}[name]
    if workers is not None and workers < 1:
        raise InputError(f"--workers is {workers}: give at least 1")
    return OnCores(workers or cores())


def _job(folder: str, experiment: str, settings: dict[str, Any]) -> str | None:
    """Finish one cell, wherever this is; what is the user's to mend comes back in words."""
    try:
        Store(folder).finish(Cell(experiment, settings))
    except InputError as error:
        return str(error)
    except MemoryError:
        raise
    except Exception as error:  # it would be raised again: the same command does not go on
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = ": ".join(filter(None, (type(error).__name__, *str(error).splitlines()[:1])))
        return f"{experiment.partition(':')[2]} raised {said} ({last.filename}:{last.lineno}): mend it"
    return None


def _arguments(cell: Cell, store: Store) -> tuple[str, str, dict[str, Any]]:
    return str(store.folder.resolve()), cell.experiment, cell.settings


def _check(cell: Cell, store: Store, result: Callable[[], str | None]) -> None:
    try:
        error = result()
    except Exception as raised:  # whatever a scheduler makes of a job that died, or ran out of time or memory
        reason = (str(raised).strip() or type(raised).__name__).splitlines()[-1][:200]
        raise InputError(f"the job of {store.file(cell).stem} failed: {reason}; the same command goes on") from raised
    if error is not None:
        raise InputError(f"{cell.label}: {error}" if cell.label else error)
    if store.result(cell) is None:
        raise InputError(
            f"{store.file(cell)} was written elsewhere and is not here: give a --store that all machines share"
        )


def _extra(name: str) -> Any:
    try:
        return import_module({"slurm": "submitit"}.get(name, name))
    except ImportError:
        raise InputError(f'--launch {name} takes an extra: pip install "residuum[{name}]"') from None
