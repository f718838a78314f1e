"""What knows Redis on the way in."""
