"""The path of a vend, one file per step; knows ports, not adapters."""
