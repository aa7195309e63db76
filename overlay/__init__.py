"""To be written."""

from overlay.reconciler import NotConverged, Reconciler, Statistics

__all__ = ["NotConverged", "Reconciler", "Statistics"]
