"""NIM Rollouts: NVIDIA NIM from nothing to a benchmarked, audited service on Amazon EKS, as Airflow pipelines."""

__version__ = "0.1.0"
