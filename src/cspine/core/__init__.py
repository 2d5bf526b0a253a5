"""What several rooms share: errors, files, progress, the types that carry everything."""
