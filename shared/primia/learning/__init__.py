"""Models, data sets and local training.

Without torch, for the web processes too:

- ``spec``: ``ModelSpec``, ``architectures()``
- ``config``: ``TrainingConfig`` with ``Schedule``, ``Augmentation``, ``LocalStopping``;
  ``hyperparameters``: each optimiser's defaults
- ``schedules``: ``rate_factor(schedule, progress)``, ``Span``; ``stopper``: ``Standing``
- ``layout``: ``Layout``, ``read_state``, ``write_state``, ``state_digest``, ``check_vector``
- ``apart``: ``layout_of(spec)``, ``first_weights(spec)``, by a process that has torch
- ``images``: ``decode(bytes, size, channels, name)``, ``load(path, size, channels)``, ``normalise``
- ``patients``: ``patient_of(path, pattern)``, ``compile_pattern``
- ``manifest``: ``DatasetManifest``, ``Entry``, ``split``, ``partition``, ``sample``
- ``datasets``: ``scan_folder``, ``scan_csv``, ``inspect``, ``validate``, ``Problem``, ``safe_path``
- ``cache``: ``load_pixels(manifest, root, size, channels, folder)``
- ``programs``: models of users' own, as data; its ``document``, ``shapes``, ``description``
- ``storage``: ``replacing(target, what)``, a file written whole or not at all

With torch, for workers:

- ``vision``: the only door to torchvision and torchmetrics
- ``models``: ``create_model(spec)``, ``load_model(spec, vector)``, ``load_into``, ``flatten``,
  ``unflatten``, ``state_layout(module)``, ``spec_layout(spec)``
- ``programs.network``, ``programs.file.save_program``; ``bundles``: a site's own MONAI bundle
- ``training``: ``ImageData.of(pixels, labels, spec)``, ``evaluate(module, data)``,
  ``train_locally(module, data, config, seed)``, ``predict(module, data)``,
  ``local_seed(run_seed, round, node)``
- ``optimisers``, ``objective``, ``batches``: what a step of training is made of;
  ``carried``: what a site keeps from round to round
- ``augmentation``: ``augment(images, generator)``
"""
