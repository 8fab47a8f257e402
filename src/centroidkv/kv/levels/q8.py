"""The finest lossy level: next to nothing is lost, at less than half of the bytes."""

from centroidkv.kv.levels.stepped import SteppedLevel

__all__ = ["Q8"]

Q8 = SteppedLevel("q8", key_step=0.08, value_step=0.08)
