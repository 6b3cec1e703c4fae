"""What Airflow must know of NIM Rollouts. DAGs import the operators themselves; nothing else is registered yet."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin


class NimRolloutsPlugin(AirflowPlugin):
    """The plugin."""

    name = "nim_rollouts"
