"""Raw gigapixel pathology slides in, slide labels and honest attention maps out."""

__version__ = "0.1.0"
