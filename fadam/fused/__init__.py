"""FAdam in compiled code, one module a device: `cpu` in C++, `cuda` in Triton. Imported on first use."""
