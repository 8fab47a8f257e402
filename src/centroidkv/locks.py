"""Locks between processes, by files in a store's folders."""

from pathlib import Path

from filelock import FileLock

from centroidkv.files import hand_over

__all__ = ["StoreLock"]


class StoreLock(FileLock):
    """A file lock whose file belongs to the user of its folder, also where root makes it."""

    def _acquire(self) -> None:
        super()._acquire()
        hand_over(Path(self.lock_file))
