"""Methods on hidden states."""
