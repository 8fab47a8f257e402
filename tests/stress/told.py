"""How a stress script ends: one line of counts, and whether a promise was broken."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["broken", "told"]


def broken(promises: Mapping[str, bool]) -> list[str]:
    """Return the names of those that were broken."""
    return [what for what, is_broken in promises.items() if is_broken]


def told(found: Mapping[str, Any], violations: Sequence[str]) -> int:
    """Print what was found; return the exit status."""
    print(json.dumps({**found, "violations": list(violations)}))
    return 1 if violations else 0
