"""`reuse="blend"`: passages' KV at any position, from where they stand in a prompt to the gate."""
