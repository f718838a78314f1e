"""What an operator runs beside the loop."""
