"""The service's etcd: a room for each part of what is kept there; `config.py` says how it is reached."""
