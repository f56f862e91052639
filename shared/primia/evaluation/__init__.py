"""What a model is worth.

- ``metrics``: ``measure(logits, labels, classes) -> Metrics``,
  ``compare(plain, encrypted) -> Agreement`` (logits), ``compare_labels``
"""
