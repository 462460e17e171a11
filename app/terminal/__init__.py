"""What commands print, and how the one that runs was called."""
