"""What an operator runs besides the loop."""
