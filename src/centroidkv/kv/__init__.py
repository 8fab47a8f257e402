"""KV blocks: their ids, the longest stored prefix, and the tiers that hold them.

Knows no model, no question and no framework.
"""
