"""To be written."""

#: Of this release; pyproject.toml takes it from here. Asking the installed package for it
#: (importlib.metadata) costs a process a megabyte.
VERSION = "0.1.0"
