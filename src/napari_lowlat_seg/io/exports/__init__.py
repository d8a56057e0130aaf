"""Labels as meshes, outlines and DICOM segmentations: what others read, and what is not read back."""
