"""What a gradient tells about the images that it was computed from. With torch.

- ``gradients``: ``mean_gradient(module)``, ``weighted_gradient``, ``clipped_gradient``: what
  training sends, as a function of images that an attacker can search through
- ``inversion``: ``invert(seen, sender, labels, shape, search) -> Inversion``: the images back from
  the gradient
- ``labels``: ``infer_label``, ``infer_counts``: the classes from the last layer's gradient
"""
