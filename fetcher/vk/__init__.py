"""What knows VK."""
