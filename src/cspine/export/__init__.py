"""A checkpoint turned into what other engines run, and held to what it did before."""
