"""The fetcher's code for Redis; the consumers have their own."""
