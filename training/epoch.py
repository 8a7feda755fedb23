"""Finds the epoch of a batch where the batch is made: in the process that trains or in a worker process."""

import sys
import weakref

import torch
from accelerate.state import GradientState
from torch.utils.data import get_worker_info


# The module of torch whose objects call the collator in a worker.
FETCH_MODULE = "torch.utils.data._utils.fetch"


class EpochCounter:
    """
    Counts epochs for a collator, since no library passes the epoch to collators.

    `Trainer` iterates over a loader of accelerate, which has the epoch. A worker process starts with a copy of it:
    `fork` copies the loader, and pickling for `spawn` and `forkserver` adds the epoch. A persistent worker counts on
    from there. A plain `DataLoader` has no epoch, so a loop over it has to call `set`.
    """

    def __init__(self):
        self._set_epoch = None  # a tensor in shared memory
        self._epoch_at_start = None
        self._fetcher = None
        self._num_resets = 0
        self._num_calls = 0

    def __getstate__(self) -> dict:
        # The `GradientState` of a spawned worker is empty, so the epoch travels with the collator.
        return {**self.__dict__, "_epoch_at_start": _active_epoch(), "_fetcher": None}

    def set(self, epoch: int):
        """Set the epoch. The first call has to come before persistent workers start, which then see all later ones."""
        if self._set_epoch is None:
            self._set_epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._set_epoch.fill_(epoch)

    def count(self) -> int | str:
        """Return the epoch, or where it is unknown a value that differs from call to call. Call it once a batch."""
        self._num_calls += 1
        if self._set_epoch is not None:
            return self._set_epoch.item()
        worker, epoch = get_worker_info(), _active_epoch()
        if worker is None:
            return self._num_calls if epoch is None else epoch
        epoch = self._epoch_at_start if epoch is None else epoch
        if epoch is not None:
            return epoch + self._count_resets()
        # New workers count calls from 0 in each epoch but have a new seed; persistent ones keep the seed and count on.
        return f"{worker.seed} {self._num_calls}"

    def _count_resets(self) -> int:
        """Return how many epochs this worker has begun after its first one; torch builds a fetcher for each."""
        fetcher = _find_fetcher()
        if self._fetcher is not None and self._fetcher() is not fetcher:
            self._num_resets += 1
        self._fetcher = weakref.ref(fetcher)
        return self._num_resets


def _active_epoch() -> int | None:
    loader = GradientState().active_dataloader
    return None if loader is None else loader.iteration


def _find_fetcher():
    """
    Return the object of torch that calls the collator.

    Raises:
        RuntimeError: if there is none, in a worker of a loader that is not torch's.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == FETCH_MODULE and "self" in frame.f_locals:
            return frame.f_locals["self"]
        frame = frame.f_back
    raise RuntimeError("Cannot tell the epoch in a worker process of this loader: call `set_epoch` before each epoch.")
