"""The drills: one fault each, under load, and what callers saw of it."""
