"""A real node, started once; skipped, with the reason, where Java or Maven is missing."""

import pytest

from nblib.opensearch.assemble import NoServer, find_tools
from nblib.opensearch.client import connect
from nblib.opensearch.node import running, start
from tests.export.conftest import exported  # noqa: F401 - a fixture


@pytest.fixture(scope="session")
def node():
    try:
        find_tools()
    except NoServer as reason:
        pytest.skip(f"no OpenSearch here: {reason}")
    yield start("tests", fresh=True)
    running("tests").stop()  # not the first one, if a test has killed it


@pytest.fixture(scope="session")
def client(node):
    return connect(node.url)


@pytest.fixture(scope="session")
def english(exported):  # noqa: F811
    return exported("en")
