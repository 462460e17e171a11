"""The outbound face: adapters to systems that are not etcd or the HSM."""
