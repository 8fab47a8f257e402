"""The coarsest level, for links so slow that size decides: some three bits a number."""

from centroidkv.kv.levels.stepped import SteppedLevel

__all__ = ["Q3"]

Q3 = SteppedLevel("q3", key_step=0.68, value_step=0.68)
