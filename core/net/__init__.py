"""The network between the parts: addresses, and the options of every gRPC channel and server."""
