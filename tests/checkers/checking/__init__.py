"""What the checkers are made of. Nothing here may use, or be written after, the operator's own code."""
