"""What sells against a stack: the demo, the sale driver, the load test's runner."""
