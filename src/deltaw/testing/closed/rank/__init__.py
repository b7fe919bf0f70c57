"""See deltaw.testing.closed."""
