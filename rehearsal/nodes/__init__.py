"""A stand-in for node auto-provisioning (Karpenter on EC2): nodes come for pods without a place, and go when empty.

Only the decision and the Node object are played here. Who fits where is finally decided by the real scheduler;
KWOK is the nodes' heartbeat. The shapes that can be started are data: ``rehearsal/nodes.yaml``.
"""
