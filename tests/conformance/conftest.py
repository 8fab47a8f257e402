"""Langchain-core's own cache tests run only where its sources are: see `make conformance`."""

import os

collect_ignore = [] if os.environ.get("LANGCHAIN_CORE_SOURCE") else ["test_langchain_core.py"]
