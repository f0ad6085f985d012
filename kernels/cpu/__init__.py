"""Native CPU backend: C++ compiled at first use, loaded through ctypes."""
