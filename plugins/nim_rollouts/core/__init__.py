"""Decisions: pure functions and values. Nothing here does I/O, reads a clock or knows Airflow or a client library."""
