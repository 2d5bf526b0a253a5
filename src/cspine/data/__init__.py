"""Pictures and tables to a manifest; splits; the cache of preprocessed slices."""
