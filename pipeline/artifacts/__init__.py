"""Existing artifacts: their content, state, damage and differences, and which of them may be removed."""
