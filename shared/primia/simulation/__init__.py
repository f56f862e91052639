"""A federation in one process: the services' training, aggregation and evaluation without them.

- ``sites``: ``load(root, sites, …) -> Setting``, images of a folder split by patient
- ``modes``: ``train(mode, sites, plan) -> weights``: local, pooled, federated plain or secure
- ``comparing``: ``compare(setting, plan, modes) -> Comparison``: what each mode is worth on test
  images
"""
