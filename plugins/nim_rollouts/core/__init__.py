"""Decisions: pure functions and values. Nothing here does I/O, reads a clock or knows Airflow, boto3 or Kubernetes clients."""
