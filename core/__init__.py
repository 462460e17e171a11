"""The service itself, free of HSM and etcd; start reading at `flows/issue.py`."""
