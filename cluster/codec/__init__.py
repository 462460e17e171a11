"""Stored records to bytes and back, and what is left alone because it cannot be understood."""
