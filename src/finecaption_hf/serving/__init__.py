"""Many users at once, and whole data sets: vLLM's plugin, and a server of this package's own."""
