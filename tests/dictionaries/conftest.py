"""SAELens imports a module that TransformerLens has deprecated: let it, once, before the tests forbid warnings."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "The 'utils' module has been deprecated", DeprecationWarning)
    import sae_lens  # noqa: F401
