"""The code that knows VK."""
