"""What an operator or a node itself does to a cluster: draining, forgetting, cluster time, keys."""
