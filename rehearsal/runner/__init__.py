"""The runner: the kubelet of every pod of a rehearsal, and its Service network."""
