"""How exactly KV is kept: levels, what they cost one model, and which one is approved."""
