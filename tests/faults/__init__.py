"""The fault matrix: every way in which VK, Redis or the fetcher itself may break, injected for real."""
