"""Is a data set evidence? Copies, leaks, anomalies, shortcuts, and the verdict."""
