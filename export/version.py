"""The exporter's version, apart from the exporter so that reading it loads nothing."""

__all__ = ["EXPORTER_VERSION"]

EXPORTER_VERSION = 6
"""Changes whenever an export of the same checkpoint would come out different, so that caches make it anew."""
