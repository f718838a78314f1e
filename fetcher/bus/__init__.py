"""The code that knows Redis, on the fetcher's side."""
