"""What the service is compared with: the same call, written plainly on another store."""
