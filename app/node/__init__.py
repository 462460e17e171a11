"""One node: configuration, assembly, TLS, logs, figures, and the process around them."""
