"""The gRPC face; the only part of core that serves callers over grpc."""
