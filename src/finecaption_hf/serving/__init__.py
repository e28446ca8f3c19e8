"""Many users at once, and whole data sets: FineCaption in vLLM."""
