"""A run as one HTML file that can be mailed: no file beside it, no request to anywhere."""
