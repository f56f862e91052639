"""What a model is worth.

- ``metrics``: ``measure(logits, labels, classes) -> Metrics``,
  ``compare(plain, encrypted) -> Agreement`` (logits), ``compare_labels``
- ``counts``: ``count(logits, labels) -> Counts``, which add up over sites: ``total(parts)``
- ``measuring``: ``figures(counts, classes) -> Figures`` with confidence intervals
- ``comparison``: ``compare_classifiers`` (McNemar), ``kappa`` (Cohen), ``bootstrap``
- ``plots``: curves, matrices, ROC, reliability and images as PNG
- ``attacks``: images and classes back from gradients
"""
