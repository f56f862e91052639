"""A federation in one process: the services' training, aggregation and evaluation without them.

- ``sites``: ``load(root, sites, …) -> Setting``, images of a folder split by patient
- ``modes``: ``train(mode, sites, plan) -> weights``: local, pooled, federated plain or secure
- ``comparing``: ``compare(setting, plan, modes) -> Comparison``: what each mode is worth on test
  images
- ``exposure``: ``of_site``, ``of_sum``, ``of_private_site``: what an owner gets to see of a step,
  for ``primia.evaluation.attacks``; ``invertible``: a network that shows it most
- ``likeness``, ``features``: how near reconstructions come: MSE, PSNR, SSIM, Fréchet distance
"""
