"""What a run leaves behind for others: assets, the decision, the seal over its records."""
