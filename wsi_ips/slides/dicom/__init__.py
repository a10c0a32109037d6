"""DICOM whole-slide images (PS3.3, A.32.8): which files are one slide, and where their tiles lie."""
