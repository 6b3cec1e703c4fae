"""A stand-in for Karpenter on EC2 (karpenter.sh v1): it reads NodePools and EC2NodeClasses, makes NodeClaims for pods
without a place, launches instances in the AWS stand-in, and takes them away when they stand empty.

It runs as the pod of ``rehearsal/charts/karpenter``. Nodes join by themselves (``rehearsal.nodes``), as real ones do:
what it knows of a node it finds on the Node object. Uninstalled while nodes are left, it leaves them, their NodeClaims
and its finalizers behind, as the real one does.
"""
