"""The machines' side of a cluster: an EC2 instance that runs becomes a Node, and a Node whose instance has ended goes.

It plays what no controller in the cluster does: each instance's kubelet, registering as its user data says, the device
plugin and feature discovery of its image, and the cloud's node lifecycle controller. Who launched an instance, a
managed node group or Karpenter, makes no difference. KWOK is the nodes' heartbeat afterwards.
"""
