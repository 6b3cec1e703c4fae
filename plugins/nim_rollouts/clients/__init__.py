"""Thin I/O around the core: the cluster, object stores, claims, the ledger, Helm, NGC."""
