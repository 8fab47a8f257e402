"""The offline half: questions become plans, plans are kept up, prefixes are warmed."""
