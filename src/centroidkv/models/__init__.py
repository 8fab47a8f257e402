"""The language model: loading, rendering, prefill, decoding, and the arena its KV lives in.

Knows no store, no cluster and no framework.
"""
