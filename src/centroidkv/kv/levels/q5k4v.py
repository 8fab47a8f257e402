"""The level for every day: some five bits a key and four a value before the entropy code."""

from centroidkv.kv.levels.stepped import SteppedLevel

__all__ = ["Q5K4V"]

Q5K4V = SteppedLevel("q5k4v", key_step=0.32, value_step=0.32)
