"""The same world as the operators' tests have."""

from tests.unit.operators.conftest import no_waiting, world  # noqa: F401
