"""DICOM whole-slide images (PS3.3, A.32.8). Start with :mod:`wsi_ips.slides.dicom.layout`."""
