"""Errors that a user can act on. The command line prints them as one line and exits with code 2."""


class PyPruneError(Exception):
    """Base of every error that pyprune raises on purpose: the message names the argument, its value and what to do."""


class InputError(PyPruneError):
    """An argument, a file or a model that cannot be used as given."""


class BudgetError(InputError):
    """A budget that is malformed, or that no plan can meet; the message says the smallest feasible one."""


class BackendError(PyPruneError):
    """A kernel backend that was asked for by name and is not available."""


class NumericsError(PyPruneError):
    """NaN or Inf in weights, activations or gradients; the message names the tensor."""


class MismatchError(PyPruneError):
    """Masked, sliced and reloaded models that do not agree, or files that belong to another model."""
