"""The whole loop as one readable script."""
