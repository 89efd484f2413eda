"""For tests that run on one of NeMo's stock classes and on what replaces it here."""

import pytest


def fails_on_stock(raises, reason):
    """Runs a test as "stock", where it has to fail with exactly this error, and as "ours"."""
    defect = pytest.mark.xfail(strict=True, raises=raises, reason=reason)
    return pytest.mark.parametrize(
        "implementation", [pytest.param("stock", marks=defect), pytest.param("ours")]
    )
