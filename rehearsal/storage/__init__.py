"""A stand-in for the EFS CSI driver's controller with its external-provisioner, and for what it would mount.

A claim of a class with the provisioner ``efs.csi.aws.com`` gets an access point (made in the AWS stand-in through
boto3, like the driver does) and a PersistentVolume; the real PV controller binds them. The volume's content is a
folder ``<state>/volumes/<volume name>``, which the runner puts where pods mount the claim.
"""
