"""Peers in one race: the same prompts, the same machine, in turn.

Run by `python -m peers`. What is imported here and in `wire.py` and `workers/` also runs in the
peers' own environments, where neither this project nor its libraries need to be.
"""
