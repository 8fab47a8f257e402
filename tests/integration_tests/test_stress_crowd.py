"""The quick forms of the stress scripts about many processes, a restarting server and a soak."""

import pytest

from stress_quick import quick


@pytest.mark.parametrize("name", ["crowd", "chroma_restart", "soak"])
def test_the_quick_form_breaks_no_promise(name: str) -> None:
    quick(name)
