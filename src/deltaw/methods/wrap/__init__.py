"""Methods that wrap another delta."""
