"""What in a slice speaks for a fracture, as a network sees it: maps, and whether they depend on what it learned."""
