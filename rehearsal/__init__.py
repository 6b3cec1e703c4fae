"""A rehearsal: the real pipelines against a real control plane, with stand-ins for what costs money."""
