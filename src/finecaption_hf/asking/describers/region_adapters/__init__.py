"""Models with code of their own: one file for each, over the interface that the model's own repository publishes.

These files import nothing else of this package, because `worker.py` runs them in the environment of the model's code:
most of it needs a transformers that cannot be installed beside this package. `load` of each makes a `RegionModel`.
"""
