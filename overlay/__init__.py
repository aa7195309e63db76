"""To be written."""

from overlay.names import NameView, views
from overlay.reconciler import NotConverged, Reconciler, Statistics
from overlay.resolver import Resolver, ResolverStatistics

__all__ = [
    "NameView",
    "NotConverged",
    "Reconciler",
    "Resolver",
    "ResolverStatistics",
    "Statistics",
    "views",
]
