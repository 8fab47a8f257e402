"""One module a peer: each is a process of its own that answers over a pipe."""
