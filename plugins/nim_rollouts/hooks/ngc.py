"""The NGC key from the environment's Airflow connection."""

from __future__ import annotations

from nim_rollouts.clients.ngc import check_key_format
from nim_rollouts.core.environment import Environment
from nim_rollouts.core.errors import NgcKeyError


def ngc_key(environment: Environment) -> str:
    """The key. Airflow masks it in logs from here on; it must not go into a record, an XCom or a template.

    :raises NgcKeyError: there is no connection of that name, or its password is not a key
    """
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        connection = Connection.get(environment.ngc_conn_id)
    except AirflowNotFoundException:
        raise NgcKeyError(
            f"the Airflow connection {environment.ngc_conn_id} does not exist", reason="ngc-key-missing"
        ) from None
    return check_key_format(connection.password)
