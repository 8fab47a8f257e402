"""The source paper's experiments again, with the column it leaves out: how often a hit was right.

Owns one harness: data, the clusterings and their hits, times with the model, tables and plots.
Measures the package from outside; nothing in `src` knows of it.
"""
