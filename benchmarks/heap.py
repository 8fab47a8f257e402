"""What glibc's heap has in use, for scripts that look for what a process keeps (Linux, glibc)."""

import ctypes

__all__ = ["HeapState", "heap_state"]


class HeapState(ctypes.Structure):
    """What glibc's `mallinfo2` returns, in bytes but for the counts of chunks."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
                     "uordblks", "fordblks", "keepcost")
    ]  # fmt: skip

    @property
    def in_use(self) -> int:
        """The bytes that were asked of glibc and not given back, mappings included."""
        return int(self.uordblks + self.hblkhd)

    @property
    def free(self) -> int:
        """The bytes of the heap that are free and were not returned to the system."""
        return int(self.fordblks)


def heap_state() -> HeapState:
    """Return what is in use and free of glibc's main heap, and in mappings."""
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = HeapState
    found: HeapState = ask()
    return found
