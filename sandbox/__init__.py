"""A head end and a fleet of meters, emulated; shares no code with the service."""
