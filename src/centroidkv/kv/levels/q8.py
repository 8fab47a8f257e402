"""The finest lossy level: next to nothing is lost, at more than half of the bytes saved."""

from centroidkv.kv.levels.stepped import SteppedLevel

__all__ = ["Q8"]

Q8 = SteppedLevel("q8", key_step=0.06, value_step=0.06)
