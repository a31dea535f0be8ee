"""The models that the tests bring into the cluster: those of tests/export."""

import pytest

from tests.export.conftest import exported  # noqa: F401 - a fixture


@pytest.fixture(scope="session")
def english(exported):  # noqa: F811
    return exported("en")
