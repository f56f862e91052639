"""Models of users' own, as programs: layers and steps that are data, never code.

A program is a JSON document (``document``): torch.nn layers with their sizes, and steps from a
short list of tensor operators, each on the results of earlier steps. There is no branch, no loop,
no name that is looked up anywhere, and no way to say more.

- ``shapes`` follows sizes through it and counts what it costs before anything runs;
  ``description`` tells it in lines; none of the three imports torch
- ``network`` builds the torch module
- ``exported`` (with ``reader``, ``operators``) makes the document of what ``torch.export.export``
  gives, on the machine of the user who trusts that model; ``file`` keeps it with its weights
"""
