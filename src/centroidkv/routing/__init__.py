"""From a question to a cluster: embedding, projection, clustering, admission, centroid index.

Knows no KV, no model and no framework.
"""
