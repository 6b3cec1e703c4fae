"""Waits, as they run in the triggerer."""
