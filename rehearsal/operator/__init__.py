"""The NIM operator's stand-in: NIMCache and NIMService v1alpha1 of apps.nvidia.com, kept as the real operator 3.1
keeps them.

It follows what was observed of the real one, flaws included: conditions without observedGeneration, a cache state
that depends on the parity of reconciles, reads from a cache that may be stale, a status that is not written while a
model endpoint is silent.
"""
