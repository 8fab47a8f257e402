"""The online half: one request on its way, what is loaded for it and what is learnt from it."""
