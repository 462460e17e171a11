"""The registry in etcd: the copy that every node reads, and the store that writes."""
