"""Images that are stored in chunks and read as they are looked at: OME-Zarr and zarr, HDF5."""
