"""Maps of what speaks for a fracture, and how well they point."""
