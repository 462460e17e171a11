"""One file per token algorithm."""
