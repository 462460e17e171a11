"""The service itself, free of HSM and etcd; start reading at `issuing/issue.py`."""
