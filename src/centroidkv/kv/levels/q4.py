"""A level for slow links: some four bits a number before the entropy code."""

from centroidkv.kv.levels.stepped import SteppedLevel

__all__ = ["Q4"]

Q4 = SteppedLevel("q4", key_step=0.44, value_step=0.44)
