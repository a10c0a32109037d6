"""Files and folders: where they are, writing them whole, locking a folder, HDF5, fingerprints and caches."""
